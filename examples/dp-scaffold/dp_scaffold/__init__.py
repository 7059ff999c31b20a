"""Breast cancer with private gradients: DP-SCAFFOLD, whose server can be killed at any time."""
