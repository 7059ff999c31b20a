"""Digits split by label: SCAFFOLD, whose server can be killed at any time."""
