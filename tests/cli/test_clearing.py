"""`prune`, `rewind`, `fork` and `rm`: what is asked first, and what then happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import copied, flip, listing, ran, unfinished, written

from flwr_ckpt import CheckpointStore, FencedError, KeepBest


def rounds(run: Path) -> list[int]:
    return [record.round for record in CheckpointStore(run).rounds()]


# --- prune -------------------------------------------------------------------------------------------------------


def test_prune_says_what_would_go_and_asks(run: Path) -> None:
    before = listing(run)
    ended = ran("prune", "digits", "--keep", "latest:1", answer="n\n")
    assert ended.code == 1
    assert ended.out.startswith("digits: rounds 0 to 2 would go, ")
    assert "nothing has been changed; --yes does it without asking" in ended.err
    assert listing(run) == before
    assert ran("prune", "digits", "--keep", "latest:1").code == 1, "nobody is there to ask"
    assert listing(run) == before
    ended = ran("prune", "digits", "--keep", "latest:1", answer="y\n")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "digits: deleted")
    assert rounds(run) == [3]


def test_a_metric_that_no_round_has_keeps_nothing_and_is_refused(run: Path) -> None:
    before = listing(run)
    ended = ran("prune", "digits", "--keep", "best:1:evaluate/los:min", "--yes")
    assert (ended.code, "no round has evaluate/los; there are " in ended.err) == (1, True)
    with pytest.raises(ValueError, match="evaluate/los"):
        CheckpointStore(run).prune(KeepBest(1, "evaluate/los", mode="min"))
    assert listing(run) == before


@pytest.mark.parametrize("command", ["rewind", "prune", "fork"])
def test_a_command_is_not_taken_for_a_server(command: str, checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "run", rounds=3)
    rest = {"rewind": ["2", "--yes"], "prune": ["--keep", "latest:1", "--yes"], "fork": ["another"]}[command]
    assert ran(command, "run", *rest).code == 0
    changed = "another" if command == "fork" else "run"
    assert f"`flwr-ckpt {command}` (process {os.getpid()} on " in ran("status", changed).out


def test_a_dry_run_asks_nothing_and_changes_nothing(run: Path) -> None:
    before = listing(run)
    ended = ran("prune", "digits", "--keep", "every:2", "--dry-run")
    assert (ended.code, ended.out.startswith("digits: round 1 would go, ")) == (0, True)
    found = ran("prune", "digits", "--keep", "every:2", "--json").json()
    assert (found["rounds"], found["dry_run"], found["size"] > 500) == ([1], True, True)
    assert listing(run) == before
    assert ran("prune", "digits", "--keep", "every:2", "--yes", "--json").json()["dry_run"] is False
    assert rounds(run) == [0, 2, 3]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("damage", [flip, truncate, lengthen])
def test_damage_goes_only_if_told(damage: Callable[[Path], None], run: Path) -> None:
    damage(run / "round-00000001/g0001-arrays.safetensors")
    assert "nothing would go" in ran("prune", "digits", "--keep", "all", "--yes").out
    ended = ran("prune", "digits", "--damaged", "--yes")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "digits: deleted")
    assert ended.out.startswith("digits: round 1 would go, ")
    assert ran("verify", "digits").code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "say what stays"),
        (["--keep", "newest:3"], 1, "cannot read 'newest:3' in the retention policy"),
        (["--keep", "latest:0"], 1, "expected a whole number of at least 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_one_line(args: list[str], code: int, message: str, run: Path) -> None:
    ended = ran("prune", "digits", *args)
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert message in ended.err


def test_prune_warns_of_a_server_that_would_be_stopped(checkpoint_home: Path) -> None:
    server = unfinished(checkpoint_home / "half", rounds=4)
    ended = ran("prune", "half", "--keep", "latest:1", answer="y\n")
    assert ended.code == 0
    assert "is writing it: it will be fenced off, and stops at its next commit" in ended.err
    with pytest.raises(FencedError):
        written(server, 5)


# --- rewind ------------------------------------------------------------------------------------------------------


def test_rewind_goes_back(run: Path) -> None:
    ended = ran("rewind", "digits", 1)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "digits: the next start goes on after round 1; what came later no longer counts\n"
    assert rounds(run) == [0, 1]
    assert ran("status", "digits").code == 3, "not finished any more, and no server is at it"


def test_rewind_asks_before_it_stops_a_server(checkpoint_home: Path) -> None:
    server = unfinished(checkpoint_home / "half")
    assert ran("rewind", "half", 1, answer="n\n").code == 1
    written(server, 3)
    assert ran("rewind", "half", 1, "--yes").code == 0
    with pytest.raises(FencedError):
        written(server, 4)


def test_rewind_to_what_is_not_there(run: Path) -> None:
    before = listing(run)
    assert ran("rewind", "digits", 9).code == 2
    flip(run / "round-00000001/g0001-arrays.safetensors")
    assert ran("rewind", "digits", 1).code == 1
    assert listing(run) == before


# --- fork --------------------------------------------------------------------------------------------------------


def test_fork_makes_a_run_of_its_own(run: Path, checkpoint_home: Path) -> None:
    ended = ran("fork", "digits", "tries/second", "--round", 2)
    assert (ended.code, ended.out) == (0, "tries/second: a run of its own, which goes on after round 2 of digits\n")
    assert rounds(checkpoint_home / "tries/second") == [2]
    assert ran("fork", "digits", "third").out.endswith("round 3 of digits\n")
    assert rounds(run) == [0, 1, 2, 3]


def test_fork_refuses_what_is_taken_or_inside(run: Path) -> None:
    for new, message in (("digits", "there is a run already"), ("digits/inner", "lies inside the run")):
        ended = ran("fork", "digits", new)
        assert (ended.code, message in ended.err) == (1, True)


# --- rm ----------------------------------------------------------------------------------------------------------


def test_rm_asks_first(run: Path) -> None:
    before = listing(run)
    ended = ran("rm", "digits", answer="n\n")
    assert (ended.code, "Delete digits at " in ended.err) == (1, True)
    assert listing(run) == before
    ended = ran("rm", "digits", answer="y\n")
    assert ended.code == 0
    assert ended.out.endswith("digits: deleted; a new run of the name begins at round 0\n")
    assert listing(run) == ["generations/0002"]
    assert ran("status", "digits").code == 2
    assert "no runs under" in ran("ls").err


def test_rm_stops_a_server_and_leaves_what_is_not_the_runs(checkpoint_home: Path) -> None:
    server = unfinished(checkpoint_home / "half")
    (checkpoint_home / "half/notes.txt").write_text("mine")
    ended = ran("rm", "half", "--yes")
    assert ended.code == 0
    assert "is writing it: it will be fenced off" in ended.err
    assert "was left: notes.txt" in ended.err
    with pytest.raises(FencedError):
        written(server, 3)


def test_a_run_given_by_its_path(run: Path, tmp_path: Path) -> None:
    copy = copied(run, tmp_path / "copy")
    assert ran("rm", copy, "--yes").code == 0
    assert ran("status", copy).code == 2
    assert ran("status", "digits").code == 0
