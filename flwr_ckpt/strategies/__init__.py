"""The room that talks to Flower: `CheckpointingStrategy`."""

from .checkpointing import CheckpointingStrategy

__all__ = ["CheckpointingStrategy"]
