"""Whether a run is what was written, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import CheckpointCorruptError, CheckpointNotFoundError
from ..format.generations import read_fence
from ..names import FENCES, CommitName, fence_key, parse_fence, parse_manifest, round_folder
from ..places.files import Files
from .run import RunReader


@dataclass(frozen=True)
class Verified:
    """What verifying a commit has found.

    Attributes
    ----------
    round : int or None
        ``None`` for a file that belongs to no round.
    phase : str
    generation : int
    path : str
        The manifest.
    problems : tuple of str
        What is wrong; each names the file.
    """

    round: int | None
    phase: str
    generation: int
    path: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is what was written."""
        return not self.problems


def verify(files: Files, reader: RunReader, progress: Callable[[int, int], None]) -> list[Verified]:
    """Verify every commit that counts, and find what is damaged beyond them.

    Parameters
    ----------
    progress : callable
        Told how many commits have been verified, and of how many.
    """
    names = reader.names()
    results = []
    for done, name in enumerate(names):
        progress(done, len(names))
        results.append(_verify(files, reader, name))
    progress(len(names), len(names))
    return [result for result in (*results, *_beyond(files, reader, names)) if result is not None]


def _verify(files: Files, reader: RunReader, name: CommitName) -> Verified | None:
    """Verify one commit; ``None`` if it has been removed meanwhile."""
    try:
        problems = reader.problems(reader.commit(name))
    except CheckpointNotFoundError:
        return None
    except CheckpointCorruptError as error:
        problems = [str(error)]
    if problems and name.key not in files.keys(round_folder(name.round)):
        return None
    return Verified(name.round, name.phase, name.generation, files.describe(name.key), tuple(problems))


def _beyond(files: Files, reader: RunReader, names: Sequence[CommitName]) -> Iterator[Verified]:
    """What no readable manifest speaks of: damaged manifests after the newest one; fences damaged or gone."""
    keys = files.keys()
    newest = max((name.generation for name in names), default=0)
    others = {name for name in map(parse_manifest, keys) if name is not None and name.generation >= newest}
    for name in sorted(others.difference(names)):
        result = _verify(files, reader, name)
        if result is not None and not result.ok:
            yield result
    for generation in sorted({*filter(None, map(parse_fence, keys)), *(name.generation for name in names)}):
        path = files.describe(fence_key(generation))
        fence = read_fence(files, generation)
        if fence is None and _is_in_use(files, generation):
            yield Verified(None, FENCES, generation, path, (f"{path}: this fence is missing",))
        elif fence is not None and not fence.token:
            yield Verified(None, FENCES, generation, path, (f"{path}: this fence is damaged",))


def _is_in_use(files: Files, generation: int) -> bool:
    """Whether a generation has commits, and so a fence: the two go only together, the fence last."""
    keys = files.keys()
    names = [name for name in map(parse_manifest, keys) if name is not None and name.generation == generation]
    return fence_key(generation) not in keys and any(files.size(name.key) is not None for name in names)
