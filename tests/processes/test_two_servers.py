"""Two servers on one run: the newer takes over, the older stops at its next commit, and nothing durable is lost."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import flwr_ckpt
from tests.lab import rivals
from tests.lab.alone import alone


def count(record_property: Any, tried: str, counts: dict[str, Any]) -> None:
    problems = counts.pop("problems")
    assert problems == []
    record_property("counted", [tried, counts])


@pytest.mark.parametrize("meanwhile", rivals.MEANWHILE)
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_server_paused_between_two_steps_is_fenced(
    meanwhile: str, step: int, tmp_path: Path, record_property: Any
) -> None:
    """Stopped by SIGSTOP before a system call of a commit or of retention; something else happens; it goes on."""
    counts = alone(rivals.paused, str(tmp_path), meanwhile, step)
    assert counts["pauses"] > 30 // step
    count(record_property, "SIGSTOP, another server meanwhile", counts)


@pytest.mark.parametrize("pauses", [[90], pytest.param([*range(120)], marks=pytest.mark.slow)], ids=len)
def test_a_paused_strategy_is_fenced(pauses: list[int], tmp_path: Path, record_property: Any) -> None:
    """Wherever a whole server is paused: another one finishes the run, as if there had been one."""
    counts = alone(rivals.overtaken, str(tmp_path), pauses)
    count(record_property, "SIGSTOP of a strategy, another one meanwhile", counts)


@pytest.mark.parametrize(("tries", "servers"), [(12, 3), pytest.param(1000, 3, marks=pytest.mark.slow)])
def test_servers_that_start_in_the_same_instant(tries: int, servers: int, tmp_path: Path, record_property: Any) -> None:
    counts = alone(rivals.races, str(tmp_path), tries, servers, 4)
    assert counts["fenced"] > 0
    count(record_property, "servers started in one instant", counts)


def test_servers_on_two_hosts_need_no_locks(tmp_path: Path, record_property: Any) -> None:
    """Two mount namespaces over one folder, at two places, and ``flock`` fails in both."""
    told = alone(rivals.across_hosts, str(tmp_path))
    if any("not permitted" in line for line in (*told["first"], *told["second"])):
        pytest.skip("this user may not make a mount namespace")
    assert told["codes"] == [0, 0]
    assert told["seen at"] == [], "the hosts' own views of the folder are nobody else's"
    fenced = told["first"].index("fenced")
    assert "second-host" in told["first"][fenced + 1]
    assert told["second"][-1] == "finished"
    assert told["owners"] == {"1": "first", "2": "first", "3": "second", "4": "second"}
    record_property("counted", ["servers in two mount namespaces", {"races": 1, "fenced": 1, "lost": 0, "wrong": 0}])


def test_nothing_locks_a_file() -> None:
    """Locks do not reach other hosts, and not all file systems have them."""
    locking = set()
    for path in Path(flwr_ckpt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if {"fcntl", "filelock", "portalocker"} & {*names, *modules}:
                locking.add(path.name)
    assert locking == set()
