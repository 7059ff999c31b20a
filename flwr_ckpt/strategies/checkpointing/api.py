"""What differs between Flower's two APIs, as far as the rest needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord
from flwr.common import Parameters

from ...store import Blob, Loaded, Phase

ServerParameters = Parameters | ArrayRecord


@dataclass(frozen=True)
class Api:
    """One of Flower's two APIs, as far as a session needs it.

    Attributes
    ----------
    order : tuple of Phase
        In which order it makes the phases of a round.
    blobs : callable
        Refers to the arrays it hands over, for the store.
    arrays : callable
        Makes what it hands over of a loaded commit.
    """

    order: tuple[Phase, ...]
    blobs: Callable[[Any], Sequence[Blob]]
    arrays: Callable[[Loaded], ServerParameters]
