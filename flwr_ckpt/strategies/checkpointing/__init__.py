"""`CheckpointingStrategy`: hooks for both of Flower's APIs, replay on the record, and whose checkpoint it is.

`wrapping` is the public class and `adopt` how an object becomes a checkpointing one; `message` and `legacy` are the
hooks of each API; `session` is what they share, with `opening` before a run, `record` for what is done and `saver` for
what is being written.
"""

from .wrapping import CheckpointingStrategy

__all__ = ["CheckpointingStrategy"]
