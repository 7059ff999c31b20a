"""The names of a run's files: the only place where they are made, and the only way in for one that was read.

Keys are relative to the run's folder, with ``/`` between parts. A name counts only in the one spelling that is
written here; numbers are compared as integers, so that running out of digits changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .draft import Phase

# From the first to be deleted with its round to the last: what is left always reads as an earlier moment of it.
PHASES_LAST_FIRST: tuple[Phase, ...] = ("end", "evaluate", "central", "train", "attempt", "initial")
FENCES = "generations"
HISTORY = "history"
STATES = "states"  # the named states of a module whose folder a run shares; each is kept as a run is

_PART = re.compile(r"[A-Za-z0-9._=-]+")
_LONGEST_PART = 255  # NAME_MAX of every file system that Linux runs on
_NUMBER = "[0-9]{1,18}"
_FENCE = re.compile(f"{FENCES}/(?P<generation>{_NUMBER})")
_MANIFEST = re.compile(
    f"round-(?P<round>{_NUMBER})/g(?P<generation>{_NUMBER})-(?P<phase>{'|'.join(PHASES_LAST_FIRST)})[.]manifest"
)
_DATA = re.compile(f"round-(?P<round>{_NUMBER})/g(?P<generation>{_NUMBER})-(?P<label>[a-z0-9-]{{1,64}})[.]safetensors")
_SEGMENT = re.compile(f"{HISTORY}/g(?P<generation>{_NUMBER})-(?P<round>{_NUMBER})-(?P<label>[a-z0-9-]{{1,64}})")
_TEMPORARY = re.compile("[.]tmp-[0-9a-f]{16}-(?P<target>[^/]+)")


@dataclass(frozen=True, slots=True, order=True)
class CommitName:
    """What a manifest's file name says."""

    round: int
    generation: int
    phase: Phase

    @property
    def key(self) -> str:
        """The manifest's key."""
        return f"{round_folder(self.round)}/g{self.generation:04d}-{self.phase}.manifest"


@dataclass(frozen=True, slots=True)
class FileName:
    """What the name of a data file or a history segment says."""

    round: int
    generation: int
    label: str


def round_folder(server_round: int) -> str:
    """Name the folder of a round."""
    return f"round-{server_round:08d}"


def fence_key(generation: int) -> str:
    """Name the fence of a generation."""
    return f"{FENCES}/{generation:04d}"


def data_key(server_round: int, generation: int, label: str) -> str:
    """Name a data file."""
    return f"{round_folder(server_round)}/g{generation:04d}-{label}.safetensors"


def segment_key(server_round: int, generation: int, label: str) -> str:
    """Name a history segment."""
    return f"{HISTORY}/g{generation:04d}-{server_round:08d}-{label}"


def temporary_key(key: str, token: str) -> str:
    """Name a temporary file beside its target; it ends as the target ends."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/.tmp-{token}-{name}"


def parse_fence(key: str) -> int | None:
    """Read a fence's generation, or ``None`` if the key is not a fence's."""
    match = _FENCE.fullmatch(key)
    return int(match["generation"]) if match and fence_key(int(match["generation"])) == key else None


def parse_manifest(key: str) -> CommitName | None:
    """Read a manifest's name, or ``None`` if the key is not a manifest's."""
    match = _MANIFEST.fullmatch(key)
    if match is None:
        return None
    phase: Phase = match["phase"]  # type: ignore[assignment]  # the pattern lists them
    name = CommitName(int(match["round"]), int(match["generation"]), phase)
    return name if name.key == key else None


def parse_data(key: str) -> FileName | None:
    """Read a data file's name, or ``None`` if the key is not a data file's."""
    return _parse_file(_DATA, key, data_key)


def parse_segment(key: str) -> FileName | None:
    """Read a history segment's name, or ``None`` if the key is not a segment's."""
    return _parse_file(_SEGMENT, key, segment_key)


def parse_temporary(key: str) -> int | None:
    """Read the generation of a temporary file, or ``None`` if the key is not a temporary file's."""
    folder, _, name = key.rpartition("/")
    match = _TEMPORARY.fullmatch(name)
    return generation_of(f"{folder}/{match['target']}") if match else None


def generation_of(key: str) -> int | None:
    """Read the generation from any key of the run's, or ``None`` for what is not the run's."""
    generation = parse_fence(key)
    if generation is not None:
        return generation
    name = parse_manifest(key) or parse_data(key) or parse_segment(key)
    return name.generation if name else parse_temporary(key)


def problem_with_part(part: str) -> str | None:
    """Say why something cannot be a part of a run's name, or ``None`` if it can."""
    if not part:
        return "a part of it is empty"
    if not _PART.fullmatch(part):
        return f"{part!r} holds other characters"
    if not part.strip("."):
        return f"{part!r} has nothing but dots"
    if part in (FENCES, HISTORY) or part.startswith("round-"):
        return f"{part!r} is a name that runs use for their own files"
    if len(part) > _LONGEST_PART:
        return f"a part of {len(part)} characters is longer than a file name may be ({_LONGEST_PART})"
    return None


def unique(name: str, taken: Collection[str]) -> str:
    """Give `name`, or `name` with the first number behind it that makes it unlike all `taken`."""
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def _parse_file(pattern: re.Pattern[str], key: str, make: Callable[[int, int, str], str]) -> FileName | None:
    match = pattern.fullmatch(key)
    if match is None:
        return None
    name = FileName(int(match["round"]), int(match["generation"]), match["label"])
    return name if make(name.round, name.generation, name.label) == key else None
