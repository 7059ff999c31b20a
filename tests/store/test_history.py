"""The history: whole from the newest manifest and its segments, whatever has become of the rounds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from run_rig import FullDisk, Place, WatchedFiles, files_in, flip, initial, opened, reader

from flwr_ckpt.store import CheckpointCorruptError, Draft, KeepLatest, Outcome, RunWriter
from flwr_ckpt.store.commands.rewind import rewind
from flwr_ckpt.store.format.history import MOST_ROUNDS, flat_metrics

pytestmark = pytest.mark.usefixtures("patient_disk")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def outcome(server_round: int, phase: str = "train") -> Outcome:
    return Outcome(server_round, phase, True, {"x": server_round})  # type: ignore[arg-type]


def write(writer: RunWriter, first: int, last: int) -> None:
    for server_round in range(first, last + 1):
        writer.commit(Draft(server_round, "train", outcomes=(outcome(server_round),)))
        writer.retain()
        writer.commit(Draft(server_round, "evaluate", outcomes=(outcome(server_round, "evaluate"),)))
        writer.retain()


def rounds_seen(run: Path) -> list[tuple[int, str]]:
    loaded = reader(run).resume()
    assert loaded is not None
    assert all(one.metrics == {"x": one.round} for one in loaded.outcomes)
    return [(one.round, one.phase) for one in loaded.outcomes]


def all_up_to(last: int, first: int = 1) -> list[tuple[int, str]]:
    return [(number, phase) for number in range(first, last + 1) for phase in ("train", "evaluate")]


def segments_of(run: Path) -> list[Path]:
    commit = reader(run).newest()
    assert commit is not None
    return [run / segment.key for segment in commit.segments]


def test_the_history_is_whole_and_the_segments_are_few(run: Path) -> None:
    writer = opened(run, KeepLatest(2))
    writer.commit(initial())
    write(writer, 1, 600)
    assert rounds_seen(run) == all_up_to(600)
    commit = reader(run).newest()
    assert commit is not None
    assert len({one.round for one in commit.outcomes}) <= MOST_ROUNDS
    assert 1 <= len(commit.segments) <= 4
    assert {one.parent.name for one in segments_of(run)} == {"history"}
    # The segments that were merged are gone; those of the kept rounds may still be there.
    assert len([name for name in files_in(run) if name.startswith("history/")]) <= len(commit.segments) + 2


def test_every_manifest_is_enough_for_its_own_history(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    write(writer, 1, 140)
    look = reader(run)
    for commit in look.commits():
        expected = [
            one for one in all_up_to(commit.round) if commit.phase == "evaluate" or one != (commit.round, "evaluate")
        ]
        assert [(one.round, one.phase) for one in look.outcomes(commit)] == expected


def test_the_history_goes_on_after_a_restart(run: Path) -> None:
    writer = opened(run, KeepLatest(1))
    writer.commit(initial())
    write(writer, 1, 100)
    write(opened(run, KeepLatest(1)), 101, 230)
    assert rounds_seen(run) == all_up_to(230)


def test_a_rewind_cuts_the_history(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    write(writer, 1, 200)
    rewind(Place(run), 90)
    assert rounds_seen(run) == all_up_to(90)
    write(opened(run, KeepLatest(1)), 91, 170)
    assert rounds_seen(run) == all_up_to(170)


def test_long_metrics_leave_the_manifest_early(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    for server_round in range(1, 12):
        long = Outcome(server_round, "train", True, {"losses": [0.123456789] * 10_000})
        writer.commit(Draft(server_round, "train", outcomes=(long,)))
        assert (run / f"round-{server_round:08d}/g0001-train.manifest").stat().st_size < 600_000
    loaded = reader(run).resume()
    assert loaded is not None
    assert [one.round for one in loaded.outcomes] == list(range(1, 12))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_segment_is_an_error_that_names_its_rounds(
    run: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = opened(run)
    writer.commit(initial())
    write(writer, 1, 80)
    (segment,) = segments_of(run)
    if damage == "flip":
        flip(segment, 100)
    elif damage == "cut":
        segment.write_bytes(segment.read_bytes()[:-1])
    else:
        segment.unlink()
    for act in (reader(run).resume, lambda: opened(run)):
        with pytest.raises(CheckpointCorruptError, match=r"rounds 1 to 64.*resume=\"must\""):
            act()
    commit = reader(run).newest()
    assert commit is not None
    assert commit.round == 80, "the weights are sound"
    assert any("rounds 1 to 64" in problem for problem in reader(run).problems(commit))
    caplog.set_level(logging.WARNING)
    writer = opened(run, strict_history=False)
    assert any("Going on without them" in message for message in caplog.messages)
    assert writer.resumed is not None
    assert [(one.round, one.phase) for one in writer.resumed.outcomes] == all_up_to(80, first=65)
    write(writer, 81, 82)
    assert rounds_seen(run) == all_up_to(82, first=65), "given up once, not asked again"


def test_a_damaged_segment_is_not_merged_into_others(run: Path) -> None:
    writer = opened(run)
    writer.commit(initial())
    write(writer, 1, 80)
    flip(segments_of(run)[0], 100)
    write(writer, 81, 140)
    with pytest.raises(CheckpointCorruptError, match="rounds 1 to 64"):
        reader(run).resume()


def test_a_segment_that_cannot_be_written_fails_the_commit_and_no_more(run: Path) -> None:
    disk = FullDisk()
    writer = opened(run, files=WatchedFiles(run, disk))
    writer.commit(initial())
    write(writer, 1, MOST_ROUNDS)
    disk.full_for = lambda operation, key: key.startswith("history/")
    with pytest.raises(OSError, match="No space"):
        write(writer, MOST_ROUNDS + 1, MOST_ROUNDS + 1)
    disk.full_for = lambda operation, key: False
    writer.commit(Draft(MOST_ROUNDS + 2, "train", outcomes=(outcome(MOST_ROUNDS + 2),)))
    assert rounds_seen(run) == [*all_up_to(MOST_ROUNDS), (MOST_ROUNDS + 1, "train"), (MOST_ROUNDS + 2, "train")]
    assert len(disk.tried) == len(set(disk.tried)), "a name was tried twice"


def test_metrics_have_the_same_names_everywhere() -> None:
    assert flat_metrics(Outcome(1, "evaluate", True, {"acc": 0.5}, loss=2.0)) == {
        "evaluate/acc": 0.5,
        "evaluate/loss": 2.0,
    }
    assert flat_metrics(Outcome(1, "train", False)) == {}
