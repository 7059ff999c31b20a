"""`flwr-ckpt`: looks at the checkpoints of runs, and does with them what no server does by itself.

It knows nothing of Flower: what a run holds is asked of ``flwr_ckpt.store``. A module fetches and says what a command
finds; `render` alone knows what a terminal is.
"""

from __future__ import annotations

from .app import main

__all__ = ["main"]
