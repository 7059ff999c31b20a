"""The program itself: how it is started, and how it ends when something goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import flip, ran, unfinished

from flwr_ckpt import __version__
from flwr_ckpt.cli.render import moment, number, plain

INSTALLED = Path(sys.executable).with_name("flwr-ckpt")


def test_the_installed_program(run: Path) -> None:
    ended = subprocess.run([INSTALLED, "status", "digits"], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("digits: finished, round 3 of 3; saved ")


def test_its_version() -> None:
    assert ran("--version").out == f"flwr-ckpt {__version__}\n"


def test_without_a_command_it_says_what_there_is() -> None:
    ended = ran()
    assert ended.code == 0
    for command in ("ls", "status", "show", "verify", "diff", "export", "prune", "rewind", "fork", "rm", "supervise"):
        assert f" {command} " in ended.out


@pytest.mark.parametrize("args", [["nonesuch"], ["ls", "--nonesuch"], ["show"], ["rewind", "digits", "five"]])
def test_a_command_that_cannot_be_understood_is_one_line(args: list[str]) -> None:
    ended = ran(*args)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("flwr-ckpt: ")
    assert "--help)" in ended.err


def test_a_traceback_is_shown_only_if_asked_for(run: Path) -> None:
    flip(run / "round-00000002/g0001-arrays.safetensors")
    ended = ran("show", "digits", 2)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "g0001-arrays.safetensors" in ended.err
    for args in (["--debug", "show", "digits", 2], ["show", "digits", 2, "--debug"]):
        with pytest.raises(ValueError, match="g0001-arrays"):
            ran(*args)


def test_debug_behind_the_dashes_is_the_commands_own(run: Path) -> None:
    ended = ran("supervise", "digits", "--", "echo", "--debug")
    assert (ended.code, ended.out) == (0, "--debug\n")


def test_what_the_store_warns_of_is_one_line_on_standard_error(run: Path) -> None:
    for file in run.glob("round-00000003/*.safetensors"):
        flip(file)
    ended = ran("show", "digits")
    assert ended.code == 0
    assert ended.out.startswith("digits, round 2, saved ")
    lines = ended.err.splitlines()
    assert lines[0].startswith("flwr-ckpt: warning: Passing over round 3 (")
    assert not any("\x1b" in line for line in lines)


def test_nothing_is_coloured_or_wrapped_in_a_pipe(checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / ("a" * 200))
    ended = ran("ls")
    assert "\x1b" not in ended.out
    assert ended.out.splitlines()[1].split()[0] == "a" * 200


def test_a_home_that_is_no_path_is_one_line() -> None:
    ended = ran("ls", "--home", "here")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "the checkpoint home 'here' (from the given checkpoint home) is not an absolute path" in ended.err


def test_names_of_runs_are_completed(run: Path, checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "cifar/lr-0.1")
    environment = {
        **os.environ,
        "_FLWR_CKPT_COMPLETE": "complete_bash",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_TESTING": "1",
    }
    for typed, expected in (("di", ["digits"]), ("", ["cifar/lr-0.1", "digits"]), ("x", [])):
        environment["COMP_WORDS"] = f"flwr-ckpt show {typed}"
        ended = subprocess.run([INSTALLED], env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert ended.stdout.split() == expected


def test_values_as_json_has_them() -> None:
    assert plain({"a": float("nan"), 2: (1, b"xyz")}) == {"a": "NaN", "2": [1, {"bytes": 3}]}


def test_numbers_and_times_as_they_are_read() -> None:
    assert [number(value) for value in (0.123456789, 3, 1e-12, float("nan"), [1])] == [
        "0.12346",
        "3",
        "1e-12",
        "nan",
        "<list>",
    ]
    assert moment(None) == "-"
