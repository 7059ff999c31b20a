"""Breast cancer: an app of Flower's legacy API whose server can be killed at any time."""
