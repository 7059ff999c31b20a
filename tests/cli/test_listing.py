"""`ls` and `status`: all runs, the rounds of one, and how far it has come."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_rig import copied, flip, opened, ran, unfinished

from flwr_ckpt.store.format import manifest as manifests


def test_an_empty_home_is_said_to_be_empty(checkpoint_home: Path) -> None:
    ended = ran("ls")
    assert (ended.code, ended.out, ended.err) == (0, "", f"flwr-ckpt: no runs under {checkpoint_home}\n")
    assert ran("ls", "--json").json() == []
    assert not checkpoint_home.exists()


def test_all_runs_are_listed_one_a_line(run: Path, checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "cifar/a-name-that-is-longer-than-a-terminal-is-wide-but-never-wrapped/lr-0.1")
    opened(checkpoint_home / "begun")
    ended = ran("ls")
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["RUN", "ROUND", "STATE", "SIZE", "SAVED"]
    assert lines[1][:3] == ["begun", "-", "writing"]
    name = "cifar/a-name-that-is-longer-than-a-terminal-is-wide-but-never-wrapped/lr-0.1"
    assert lines[2][:5] == [name, "2", "of", "5", "writing"]
    assert lines[3][:5] == ["digits", "3", "of", "3", "finished"]
    assert len(lines) == 4


def test_runs_as_json(run: Path) -> None:
    [found] = ran("ls", "--json").json()
    assert {name: found[name] for name in ("run", "where", "state", "round", "num_rounds", "phase", "generation")} == {
        "run": "digits",
        "where": str(run),
        "state": "finished",
        "round": 3,
        "num_rounds": 3,
        "phase": "end",
        "generation": 1,
    }
    assert found["size"] > 1000
    assert found["restarts"] == []
    assert found["server"]["pid"] == os.getpid()


def test_another_home_can_be_given(run: Path, tmp_path: Path) -> None:
    copied(run, tmp_path / "other/copy")
    assert [found["run"] for found in ran("ls", "--json", "--home", tmp_path / "other").json()] == ["copy"]
    assert ran("status", "copy", "--home", tmp_path / "other").code == 0


def test_rounds_are_listed_with_their_metrics_and_the_best(run: Path) -> None:
    lines = ran("ls", "digits").out.splitlines()
    titles = lines[0].split()
    assert titles[:5] == ["ROUND", "PHASES", "SAVED", "SIZE", "GEN"]
    assert titles[5:8] == ["evaluate/loss", "central/loss", "train/loss"]
    assert lines[1].split()[:3] == ["0", "initial", "central"]
    assert lines[4].split()[:6] == ["*", "3", "train", "evaluate", "central", "end"]
    assert lines[5] == "* best evaluate/loss of the rounds that are kept"


def test_another_metric_can_be_asked_for(run: Path) -> None:
    lines = ran("ls", "digits", "--metric", "central/loss", "--mode", "max").out.splitlines()
    assert "GEN  central/loss  evaluate/loss" in lines[0]
    assert lines[1].split()[:2] == ["*", "0"]
    ended = ran("ls", "digits", "--metric", "nonesuch")
    assert ended.code == 2
    assert "no round that is kept has 'nonesuch'; there are central/loss" in ended.err


def test_rounds_as_json(checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "odd", loss={1: float("nan"), 2: float("-inf")}, accuracy={1: 0.5, 2: 2**70})
    rounds = ran("ls", "odd", "--json").json()
    assert [(found["round"], found["phases"], found["generation"]) for found in rounds] == [
        (0, ["initial"], 1),
        (1, ["train"], 1),
        (2, ["train"], 1),
    ]
    assert rounds[1]["metrics"] == {"train/loss": "NaN", "train/accuracy": 0.5}
    assert rounds[2]["metrics"] == {"train/loss": "-Infinity", "train/accuracy": 2**70}
    assert [found["best"] for found in rounds] == [False, False, True]


def test_a_name_that_nobody_has_is_one_line(run: Path, checkpoint_home: Path) -> None:
    for command in ("ls", "status", "show", "verify", "rewind", "rm", "plot"):
        ended = ran(command, "digit", *(["1"] if command == "rewind" else []))
        assert (ended.code, ended.out) == (2, ""), command
        assert ended.err == (
            f"flwr-ckpt: {checkpoint_home}/digit: there is no run here; `flwr-ckpt ls` lists what is under "
            f"{checkpoint_home}\n"
        )


@pytest.mark.parametrize("name", ["./digits", "../digits", "digits/", "round-00000001", "~/digits", "a b"])
def test_what_is_no_name_is_one_line(name: str, run: Path) -> None:
    ended = ran("status", name)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"{name!r} is not an absolute path and cannot be a run name" in ended.err


def test_an_absolute_path_is_a_run_too(finished_run: Path) -> None:
    ended = ran("status", finished_run)
    assert (ended.code, ended.out.startswith(f"{finished_run}: finished, round 3 of 3; saved ")) == (0, True)


# --- status ------------------------------------------------------------------------------------------------------


def test_a_finished_run(run: Path) -> None:
    ended = ran("status", "digits")
    assert ended.code == 0
    assert ended.out.startswith("digits: finished, round 3 of 3; saved ")
    assert ended.out.count("\n") == 1


def test_a_run_that_a_server_of_this_host_is_writing(checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "half")
    ended = ran("status", "half")
    assert ended.code == 4
    assert "half: not finished, round 2 of 5; saved " in ended.out
    assert f"; process {os.getpid()} on " in ended.out
    assert ended.out.endswith(" is writing it\n")
    assert ran("status", "half", "--json").json()["state"] == "writing"


def test_a_run_whose_server_is_gone(checkpoint_home: Path) -> None:
    script = "import sys; sys.path[:0] = sys.argv[2:]; from cli_rig import *; unfinished(Path(sys.argv[1]))"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    subprocess.run([sys.executable, "-c", script, str(checkpoint_home / "half"), *paths], check=True)
    ended = ran("status", "half")
    assert ended.code == 3
    assert ended.out.endswith(" is gone\n")


def test_a_run_that_was_only_opened(checkpoint_home: Path) -> None:
    opened(checkpoint_home / "begun")
    ended = ran("status", "begun")
    assert (ended.code, ended.out.startswith("begun: nothing is saved yet; process ")) == (4, True)


def test_a_run_of_which_nothing_can_be_read(run: Path) -> None:
    for manifest in run.glob("round-*/*.manifest"):
        flip(manifest)
    ended = ran("status", "digits")
    assert (ended.code, "damaged: no checkpoint can be read; `flwr-ckpt verify` says why" in ended.out) == (1, True)
    assert ran("ls").out.splitlines()[1].split()[:3] == ["digits", "-", "damaged"]


def test_a_run_of_a_newer_version_is_named_and_the_others_are_listed(
    run: Path, checkpoint_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "FORMAT", 2)
    unfinished(checkpoint_home / "newer")
    monkeypatch.undo()
    monkeypatch.setenv("FLWR_CKPT_HOME", str(checkpoint_home))
    ended = ran("status", "newer")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "has format version 2" in ended.err
    ended = ran("ls")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["RUN", "digits", "newer"]
    assert "unreadable" in ended.out
    assert "has format version 2" in ended.err
    assert [found["state"] for found in ran("ls", "--json").json()] == ["finished", "unreadable"]


def test_a_run_that_may_not_be_read(run: Path, checkpoint_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(checkpoint_home / "other")
    really = os.scandir

    def scandir(folder: os.PathLike[str]) -> Any:  # the tests may run as root, whom no mode keeps out
        if Path(folder).is_relative_to(run):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    ended = ran("status", "digits")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"flwr-ckpt: [Errno 13] Permission denied: '{run}")
    assert ended.err.count("\n") == 1
    ended = ran("ls")
    assert [line.split()[1:3] for line in ended.out.splitlines()[1:]] == [["-", "unreadable"], ["2", "of"]]
    assert "Permission denied" in ended.err
