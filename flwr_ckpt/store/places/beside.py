"""Work for a processor while a disk or a network works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def done_beside(work: Callable[[], None]) -> Iterator[None]:
    """Do some work in a thread of its own, begun with the body and done when the body has ended."""
    thread = threading.Thread(target=work, name="flwr-ckpt-beside", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # at interpreter exit no thread can be started
        work()
        yield
        return
    try:
        yield
    finally:
        thread.join()
