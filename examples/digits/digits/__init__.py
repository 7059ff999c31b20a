"""Digits: a Flower app whose server can be killed at any time."""
