"""The benchmarks work: each figure is there, and of the right sign."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.targets import PROVED_BY_TESTS

ROOT = Path(__file__).resolve().parents[2]
CASES = ["many", "lora", "in_place", "values"]
if find_spec("torch"):
    CASES.append("best")


def test_the_smoke_run_gives_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--plan", "smoke", "--contenders", "raw", "flwr_ckpt"]
    command += ["--cases", *CASES, "--no-picture", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    by_contender = results["comparison"]["4"]
    measured = [by_contender["raw"][0], by_contender["flwr_ckpt"][0], *results["cases"].values()]
    assert list(results["cases"]) == CASES
    for result in measured:
        check(result)
    assert all(load["seconds"] > 0 and load["read"] > 0 and load["memory"] > 0 for load in measured[1]["loads"])
    assert all(one["copy"] > 0 for one in results["cases"]["in_place"]["rounds"])
    assert "shown by tests" in done.stdout
    assert done.stdout.strip() == (tmp_path / "out" / "README.md").read_text().strip()


def test_what_is_shown_by_tests_names_tests_that_are_there() -> None:
    assert [where for where in PROVED_BY_TESTS.values() if not (ROOT / where).is_file()] == []


def check(result: dict[str, Any]) -> None:
    assert result["rounds"]
    assert result["memory"] >= 0
    assert result["stalled"] >= 0
    for one in result["rounds"]:
        assert one["blocked"] > 0
        assert one["durable"] > 0
        assert one["raw"] > 0
        assert one["disk"] >= result["changed"]  # random numbers: fewer bytes cannot hold them
