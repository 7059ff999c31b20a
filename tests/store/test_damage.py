"""Damage: every byte of a small store flipped, every file cut, lengthened, emptied, taken away or replaced.

What has to come of each is worked out beforehand from the sound store: which commits it makes unsound, and so which one
is the newest sound one. Never a wrong value, never an older round than need be, the damaged file named, left where it
is, and noticed by `verify`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_rig import blob, initial, later, model, opened, reader, train

from flwr_ckpt.store import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointStore,
    Loaded,
)
from flwr_ckpt.store.format import history
from flwr_ckpt.store.format.records import Commit, Place
from flwr_ckpt.store.writing import assembly, contents

Record = Callable[[str, object], None]
_FLIPS = [1 << bit for bit in range(8)]
_STEP = 61  # of the short cut: prime, so that every field of these files is met somewhere


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two generations, two phases a round, a layer that two files share, a stored document, two history segments."""
    monkeypatch.setattr(contents, "SHARED_FROM", 1)
    monkeypatch.setattr(assembly, "_INLINE", 200)
    monkeypatch.setattr(history, "MOST_ROUNDS", 1)
    path = tmp_path / "run"
    writer = opened(path)
    writer.commit(initial(arrays=_arrays(0)))
    for server_round in (1, 2, 3):
        if server_round == 3:
            writer = opened(path)
        writer.commit(_trained(server_round))
        writer.commit(later(server_round))
    return path


def _arrays(server_round: int) -> tuple[Any, ...]:
    return (*model(server_round), blob("frozen", np.arange(8)))


def _trained(server_round: int) -> Any:
    return train(server_round, arrays=_arrays(server_round), documents={"tree": server_round, "long": "x" * 250})


@dataclass
class Sound:
    """The store as it was written, to compare with."""

    run: Path
    commits: list[Commit]  # newest first
    loaded: dict[str, Loaded]  # by key of the manifest
    history: dict[str, dict[int, Any]]
    files: dict[Path, bytes]

    @classmethod
    def of(cls, run: Path) -> Sound:
        look = reader(run)
        commits = look.commits()[::-1]
        assert [commit.round for commit in commits] == [3, 3, 2, 2, 1, 1, 0]
        files = {one: one.read_bytes() for one in sorted(run.rglob("*")) if one.is_file()}
        assert {one.suffix or one.parent.name for one in files} == {
            ".manifest",
            ".safetensors",
            "generations",
            "history",
        }
        loaded = {commit.name.key: look.load(commit) for commit in commits}
        assert all(result.ok for result in CheckpointStore(run).verify())
        return cls(run, commits, loaded, CheckpointStore(run).history(), files)

    def newest_without(self, path: Path, offset: int | None) -> Commit | None:
        """The newest commit that is sound when a byte of a file is wrong, or nothing of it can be trusted."""
        key = path.relative_to(self.run).as_posix()
        return next((commit for commit in self.commits if not _is_broken(commit, key, offset)), None)

    def needs(self, commit: Commit | None, path: Path) -> bool:
        """Whether a file is a part of the history that a commit needs."""
        key = path.relative_to(self.run).as_posix()
        return commit is not None and any(segment.key == key for segment in commit.segments)


def _is_broken(commit: Commit, key: str, offset: int | None) -> bool:
    if commit.name.key == key:
        return True
    for entry in commit.entries():
        hit = [
            place.file == key and (offset is None or place.offset <= offset < place.offset + entry.size)
            for place in entry.places
        ]
        if hit and all(hit):
            return True
    return False


@contextmanager
def _told() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _resumes(sound: Sound, path: Path, offset: int | None, *, is_gap: bool = False) -> None:
    """A reader takes the newest sound commit, whole and true, and says what it has passed over."""
    expected = sound.newest_without(path, offset)
    with _told() as lines:
        look = reader(sound.run)
        if sound.needs(expected, path):
            with pytest.raises(CheckpointCorruptError, match=path.name):
                look.resume()
            loaded = look.resume(strict_history=False)
        else:
            loaded = look.resume()
    assert loaded is not None
    assert expected is not None
    assert loaded.commit == expected, f"{loaded.commit.name} instead of {expected.name}"
    truth = sound.loaded[expected.name.key]
    assert (loaded.arrays, loaded.state, loaded.documents) == (truth.arrays, truth.state, truth.documents)
    if sound.needs(expected, path):
        assert [outcome for outcome in truth.outcomes if outcome in loaded.outcomes] == loaded.outcomes
    else:
        assert loaded == truth
    if (expected is not sound.commits[0] or sound.needs(expected, path)) and not is_gap:
        assert any(path.name in line for line in lines), lines


def _is_looked_at(sound: Sound, path: Path, offset: int | None, *, is_gap: bool = False) -> None:
    """`CheckpointStore` never shows anything else than what was written, and `verify` names the file."""
    expected = sound.newest_without(path, offset)
    assert expected is not None
    store = CheckpointStore(sound.run)
    missed = CheckpointNotFoundError if is_gap else CheckpointCorruptError
    for server_round in (None, *range(4)):
        try:
            found = store.load(server_round)
        except missed:
            assert server_round is not None
            assert any(_is_broken(one, path.relative_to(sound.run).as_posix(), offset) for one in sound.commits)
            continue
        if server_round is None:
            assert found.path == expected.path
        truth = sound.loaded[Path(found.path).relative_to(sound.run).as_posix()]
        assert found.round == truth.commit.round
        assert found.parameters().tensors == list(truth.arrays.values())
        assert {name: _elements(found.arrays[name]) for name in ("w", "b")} == _values(found.round)
    records = store.rounds()
    assert {record.round for record in records} <= {0, 1, 2, 3}
    for metric, values in store.history().items():
        assert values.items() <= sound.history[metric].items()
    best = store.best("evaluate/loss", "min")
    assert best is None or best.metrics.items() <= dict(_metrics(sound, best.round)).items()
    wrong = [problem for result in store.verify() for problem in result.problems]
    assert is_gap or any(path.name in problem for problem in wrong), wrong


def _elements(array: np.ndarray[Any, Any]) -> list[Any]:
    return list(array.tolist())


def _values(server_round: int) -> dict[str, list[Any]]:
    return {"w": np.full((3, 2), server_round, "f4").tolist(), "b": np.full(2, -float(server_round)).tolist()}


def _metrics(sound: Sound, server_round: int) -> Iterator[tuple[str, Any]]:
    for metric, values in sound.history.items():
        if server_round in values:
            yield metric, values[server_round]


def _check(sound: Sound, path: Path, offset: int | None, *, all_ways: bool = True) -> None:
    _resumes(sound, path, offset)
    if all_ways:
        _is_looked_at(sound, path, offset)


def _flip_all(sound: Sound, offsets: Callable[[int], range], patterns: Callable[[int], list[int]]) -> int:
    """Flip bytes of every file, one at a time, and give the number of flips."""
    tried = 0
    for path, data in sound.files.items():
        for offset in offsets(len(data)):
            for number, pattern in enumerate(patterns(offset)):
                damaged = bytearray(data)
                damaged[offset] ^= pattern
                path.write_bytes(damaged)
                _check(sound, path, offset, all_ways=number == 0)
                assert path.read_bytes() == damaged, "what is damaged is left where it is"
                tried += 1
        path.write_bytes(data)
    _is_as_it_was(sound)
    return tried


def _is_as_it_was(sound: Sound) -> None:
    assert {one: one.read_bytes() for one in sorted(sound.run.rglob("*")) if one.is_file()} == sound.files
    _resumes(sound, sound.run / "nothing", None)


def _cut_all(sound: Sound, lengths: Callable[[int], range]) -> int:
    """Cut every file to lengths, and lengthen it, and give the number of times."""
    tried = 0
    for path, data in sound.files.items():
        for damaged in [*(data[:length] for length in lengths(len(data))), data + b"\0", data + b"\n", data + data]:
            path.write_bytes(damaged)
            _check(sound, path, None)
            assert path.read_bytes() == damaged
            tried += 1
        path.write_bytes(data)
    _is_as_it_was(sound)
    return tried


@pytest.mark.usefixtures("patient_disk")
def test_no_flipped_byte_gives_a_wrong_value_or_costs_a_sound_round(run: Path, record_property: Record) -> None:
    sound = Sound.of(run)
    tried = _flip_all(sound, lambda size: range(size % _STEP, size, _STEP), lambda offset: [_FLIPS[offset % 8]])
    record_property("counted", ("bytes flipped", {"tried": tried, "lost": 0, "wrong": 0}))


@pytest.mark.slow
@pytest.mark.usefixtures("patient_disk")
@pytest.mark.parametrize("part", range(16))
def test_no_flip_of_any_byte_does(part: int, run: Path, record_property: Record) -> None:
    """Every byte of every file: each of its bits, and all of them, resumed; looked at in all ways with one of them."""
    sound = Sound.of(run)
    tried = _flip_all(sound, lambda size: range(part, size, 16), lambda offset: [_FLIPS[offset % 8], *_FLIPS, 0xFF])
    record_property("counted", ("bytes flipped", {"tried": tried, "lost": 0, "wrong": 0}))


@pytest.mark.usefixtures("patient_disk")
def test_no_cut_gives_a_wrong_value_or_costs_a_sound_round(run: Path, record_property: Record) -> None:
    sound = Sound.of(run)
    tried = _cut_all(sound, lambda size: range(0, size, 3 * _STEP))
    record_property("counted", ("files cut or lengthened", {"tried": tried, "lost": 0, "wrong": 0}))


@pytest.mark.slow
@pytest.mark.usefixtures("patient_disk")
@pytest.mark.parametrize("part", range(8))
def test_no_cut_to_any_length_does(part: int, run: Path, record_property: Record) -> None:
    sound = Sound.of(run)
    tried = _cut_all(sound, lambda size: range(part, size, 8))
    record_property("counted", ("files cut or lengthened", {"tried": tried, "lost": 0, "wrong": 0}))


@pytest.mark.usefixtures("patient_disk")
def test_a_shared_array_of_which_both_copies_are_damaged(run: Path, record_property: Record) -> None:
    """The rounds that need it are passed over, and no other; with one copy sound, none is."""
    writer = opened(run)
    writer.commit(_trained(4))
    writer.commit(_trained(5))
    writer.commit(train(6, arrays=model(6), documents={}))
    look = reader(run)
    commits = look.commits()[::-1]
    needing = {commit.round: entry.places for commit in commits for entry in commit.arrays if entry.name == "frozen"}
    assert {number: len(places) for number, places in needing.items()} == {5: 2, 4: 1, 3: 1, 2: 2, 1: 2, 0: 1}
    (run / "round-00000006/g0003-train.manifest").unlink()
    first, second = needing[5]
    tried = 0
    for offset in range(0, 64, 3):
        with _flipped(run, first, offset):
            loaded = reader(run).resume()
            assert loaded is not None
            assert loaded.commit.round == 5, "its other copy is sound"
            with _flipped(run, second, 63 - offset):
                loaded = reader(run).resume()
                assert loaded is not None
                assert loaded.commit.round == 3, "4 and 5 need it; 3 is of the server before"
                assert loaded.arrays == {one.name: one.data for one in _arrays(3)}
                wrong = [result.round for result in CheckpointStore(run).verify() if not result.ok]
                assert wrong == [4, 5]
        tried += 2
    record_property("counted", ("copies of a shared array damaged", {"tried": tried, "lost": 0, "wrong": 0}))


@contextmanager
def _flipped(run: Path, place: Place, offset: int) -> Iterator[None]:
    path = run / place.file
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[place.offset + offset] ^= 0x20
    path.write_bytes(damaged)
    yield
    path.write_bytes(sound)


def _missing(path: Path, copy: Path) -> None:
    path.unlink()


def _folder(path: Path, copy: Path) -> None:
    path.unlink()
    path.mkdir()


def _full_folder(path: Path, copy: Path) -> None:
    _folder(path, copy)
    shutil.copy(copy, path / "inside")


def _link(path: Path, copy: Path) -> None:
    path.unlink()
    path.symlink_to(copy)


def _dead_link(path: Path, copy: Path) -> None:
    path.unlink()
    path.symlink_to(copy / "nowhere")


def _pipe(path: Path, copy: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.usefixtures("patient_disk")
@pytest.mark.parametrize("replace_it", [_missing, _folder, _full_folder, _link, _dead_link, _pipe])
def test_a_file_that_is_no_longer_one(
    replace_it: Callable[[Path, Path], None], run: Path, tmp_path: Path, record_property: Record
) -> None:
    sound = Sound.of(run)
    copy = tmp_path / "copy"
    for path, data in sound.files.items():
        copy.write_bytes(data)  # sound in itself, and not where a run's files lie
        replace_it(path, copy)
        # A commit exists if its manifest does: one that is gone was never made, as far as anybody can tell.
        is_gap = path.suffix == ".manifest" and replace_it in (_missing, _folder, _full_folder)
        _resumes(sound, path, None, is_gap=is_gap)
        _is_looked_at(sound, path, None, is_gap=is_gap)
        before = copy.read_bytes()
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(data)
        assert before == data, "nothing was written through it"
    _is_as_it_was(sound)
    record_property("counted", ("files replaced by what is none", {"tried": len(sound.files), "lost": 0, "wrong": 0}))


@pytest.mark.parametrize("broken", range(0, 8, 3))
def test_a_large_array_that_is_read_beside_others_is_verified_as_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: int
) -> None:
    writer = opened(tmp_path / "run")
    large = {
        number: tuple(blob(str(index), np.full(40_000, number + index)) for index in range(8)) for number in (1, 2)
    }
    writer.commit(initial())
    for server_round, arrays in large.items():
        writer.commit(train(server_round, arrays=arrays))
    sound = reader(tmp_path / "run").resume()
    assert sound is not None
    assert list(sound.arrays.items()) == [(one.name, one.data) for one in large[2]]

    place = sound.commit.arrays[broken].places[0]
    file = tmp_path / "run" / place.file
    data = bytearray(file.read_bytes())
    data[place.offset + 100_000] ^= 1
    file.write_bytes(data)
    older = reader(tmp_path / "run").resume()
    assert older is not None
    assert older.commit.round == 1
    assert list(older.arrays.items()) == [(one.name, one.data) for one in large[1]]
    assert f"the array '{broken}' does not have the checksum that was written" in caplog.text
