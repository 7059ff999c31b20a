"""Our lines in Flower's log, and silence while finished rounds are replayed."""

from __future__ import annotations

import logging
import threading

LOGGER = logging.getLogger("flwr")
_OURS = {"flwr_ckpt": True}


def debug(message: str, *args: object) -> None:
    """Log a line for whoever looks closely."""
    LOGGER.debug(message, *args, extra=_OURS)


def info(message: str, *args: object) -> None:
    """Log a line that replay does not hold back."""
    LOGGER.info(message, *args, extra=_OURS)


def warning(message: str, *args: object) -> None:
    """Log a warning."""
    LOGGER.warning(message, *args, extra=_OURS)


def error(message: str, *args: object) -> None:
    """Log an error."""
    LOGGER.error(message, *args, extra=_OURS)


def end_quiet() -> None:
    """Let all lines of this thread through, whatever server of it broke off in replay and was never closed."""
    for held in list(LOGGER.filters):
        if isinstance(held, Quiet) and held.thread == threading.get_ident():
            held.end()


class Quiet(logging.Filter):
    """Holds back what a thread logs below a warning: Flower's lines on rounds that are only replayed.

    Attributes
    ----------
    thread : int or None
        Which, while lines are held back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = None
        self._until_blank = False

    def begin(self) -> None:
        """Hold back lines from now on."""
        if self.thread is None:
            self.thread = threading.get_ident()
            LOGGER.addFilter(self)

    def end_with_round(self) -> None:
        """Hold back what is left of the round that is being replayed: Flower logs a blank line before the next."""
        self._until_blank = True

    def end(self) -> None:
        """Let lines through again."""
        if self.thread is not None:
            self.thread = None
            LOGGER.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell logging whether the line may pass."""
        if record.thread != self.thread or record.levelno >= logging.WARNING or getattr(record, "flwr_ckpt", False):
            return True
        if self._until_blank and not record.getMessage().strip():
            self.thread = None  # stays in place, and lets everything pass: filters are being gone through
        return self.thread is None
