"""How far a run has come, whether its server is still there, and which runs there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_rig import flip, initial, later, opened, run_to, train

from flwr_ckpt.store import CheckpointStore, Draft, FormatVersionError, runs_under
from flwr_ckpt.store.format import manifest as manifests
from flwr_ckpt.store.format.servers import Server, process_mark


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def identity(num_rounds: int | None) -> dict[str, object]:
    return {"tree": 0, "identity": {"num_rounds": num_rounds, "app": "lab/app"}}


def test_a_place_with_nothing_has_no_run(run: Path) -> None:
    status = CheckpointStore(run).status()
    assert (status.exists, status.round, status.finished, status.server) == (False, None, False, None)
    assert CheckpointStore(run).size() == 0
    assert not run.exists()


def test_a_run_says_how_far_it_has_come(run: Path) -> None:
    writer = opened(run)
    assert CheckpointStore(run).status().exists
    assert CheckpointStore(run).status().round is None
    writer.commit(initial(documents=identity(5)))
    writer.commit(train(1, documents={}))
    writer.commit(later(1))
    status = CheckpointStore(run).status()
    assert (status.round, status.num_rounds, status.phase, status.finished) == (1, 5, "evaluate", False)
    assert status.generation == 1
    assert CheckpointStore(run).size() == sum(file.stat().st_size for file in run.rglob("*") if file.is_file())


def test_an_attempt_is_no_round(run: Path) -> None:
    writer = opened(run)
    run_to(writer, 2)
    writer.commit(Draft(3, "attempt"))
    assert CheckpointStore(run).status().round == 2


@pytest.mark.parametrize("extra", [{}, {"padding": "x" * 20_000}], ids=["in the manifest", "in a file"])
def test_a_run_is_finished_when_its_server_came_to_the_end(run: Path, extra: dict[str, str]) -> None:
    writer = opened(run)
    writer.commit(initial(documents={"identity": {"num_rounds": 1, **extra}}))
    writer.commit(train(1, documents={}))
    assert not CheckpointStore(run).status().finished
    writer.commit(Draft(1, "end"))
    status = CheckpointStore(run).status()
    assert (status.finished, status.round, status.num_rounds) == (True, 1, 1)


def test_restarts_are_the_rounds_at_which_another_server_took_up(run: Path) -> None:
    run_to(opened(run), 2)
    run_to(opened(run), 4, first=3)
    opened(run)
    run_to(opened(run), 5, first=5)
    assert CheckpointStore(run).status().restarts == (3, 5)


def test_a_run_of_which_nothing_can_be_read_is_damaged_and_not_empty(run: Path) -> None:
    run_to(opened(run), 1)
    for manifest in run.glob("round-*/*.manifest"):
        flip(manifest)
    status = CheckpointStore(run).status()
    assert (status.exists, status.damaged, status.round) == (True, True, None)


def test_a_newer_version_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FORMAT", 2)
    run_to(opened(run), 1)
    monkeypatch.undo()
    with pytest.raises(FormatVersionError):
        CheckpointStore(run).status()


# --- the server --------------------------------------------------------------------------------------------------

OPENED = """
import sys
from pathlib import Path
from flwr_ckpt.store import KeepAll, RunWriter, locate
RunWriter.open(locate(sys.argv[1]), KeepAll())
print("open", flush=True)
sys.stdin.read()
"""


def server_of(run: Path) -> Server:
    server = CheckpointStore(run).status().server
    assert server is not None
    return server


def test_a_server_that_lives_is_running_and_one_that_was_killed_is_not(run: Path) -> None:
    command = [sys.executable, "-c", OPENED, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        server = server_of(run)
        assert (server.pid, server.running) == (process.pid, True)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet asked how
        assert server.running is False
    assert server_of(run).running is False


def test_another_process_of_that_number_is_not_the_server(run: Path) -> None:
    opened(run)
    own = server_of(run)
    assert own.running is True
    mark = process_mark(os.getpid())
    assert mark is not None
    assert Server(1, own.host, own.pid, own.time, (mark[0], mark[1], mark[2] + 1)).running is False


def test_of_a_server_elsewhere_nothing_is_claimed(run: Path) -> None:
    opened(run)
    own = server_of(run)
    mark = process_mark(os.getpid())
    assert mark is not None
    elsewhere = [("another boot", mark[1], mark[2]), (mark[0], "pid:[1]", mark[2]), None]
    assert [Server(1, own.host, own.pid, own.time, other).running for other in elsewhere] == [None, None, None]


# --- all runs ----------------------------------------------------------------------------------------------------


def test_runs_are_found_by_name(checkpoint_home: Path) -> None:
    assert list(runs_under()) == []
    for name in ("digits", "cifar/lr-0.1", "cifar/lr-0.2", "a/b/c"):
        opened(checkpoint_home / name)
    (checkpoint_home / "digits/states/kept/generations").mkdir(parents=True)
    (checkpoint_home / "not a name").mkdir()
    (checkpoint_home / "empty").mkdir()
    (checkpoint_home / "file").write_text("")
    found = list(runs_under())
    assert [location.label for location in found] == ["a/b/c", "cifar/lr-0.1", "cifar/lr-0.2", "digits"]
    assert all(CheckpointStore(location).status().exists for location in found)


def test_another_home_can_be_looked_under(tmp_path: Path) -> None:
    opened(tmp_path / "other/run")
    assert [location.folder for location in runs_under(tmp_path / "other")] == [tmp_path / "other/run"]
