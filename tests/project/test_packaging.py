"""What is promised to those who install the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomli  # Flower brings it; the standard library has its own from 3.11 on
import yaml

import flwr_ckpt

ROOT = Path(__file__).parents[2]
OURS = {"all", "bench", "dev", "docs", "examples", "fuzz", "test"}  # extras that are not for users
PINNED_ELSEWHERE = {"bench"}  # in an environment of its own


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    project: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}


def test_the_core_needs_flower_numpy_and_a_quick_checksum_alone(project: dict[str, Any]) -> None:
    assert names(project["dependencies"]) == {"flwr", "numpy", "zlib-ng"}


def test_all_holds_every_extra_that_is_for_users(project: dict[str, Any]) -> None:
    (everything,) = project["optional-dependencies"]["all"]
    extras = set(re.fullmatch(r"flwr-ckpt\[(.*)\]", everything)[1].split(","))  # type: ignore[index]
    assert extras == set(project["optional-dependencies"]) - OURS


def test_the_version_is_written_once(project: dict[str, Any]) -> None:
    assert "version" not in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", flwr_ckpt.__version__)


def test_each_python_that_is_promised_is_tried(project: dict[str, Any]) -> None:
    matrix = re.search(r"for python in \((.*)\)", (ROOT / "noxfile.py").read_text())
    assert matrix is not None
    tried = re.findall(r"3\.\d+", matrix[1])
    promised = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert tried == promised
    assert project["requires-python"] == f">={tried[0]}"


def test_each_development_dependency_is_pinned(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in PINNED_ELSEWHERE}
    wanted = names([requirement for extra in extras.values() for requirement in extra]) | {"flwr", "numpy", "zlib-ng"}
    assert wanted - {"flwr-ckpt"} <= pinned


def test_types_are_there_for_users() -> None:
    assert (Path(flwr_ckpt.__file__).parent / "py.typed").exists()


def test_the_workflow_asks_for_what_is_there() -> None:
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    workflow = yaml.safe_load(text)
    assert set(workflow["jobs"]["session"]["needs"].split()) <= set(workflow["jobs"])
    for target in workflow["jobs"]["whole"]["strategy"]["matrix"]["target"]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    # One version of nox everywhere: its names of sessions are what the workflow hands on.
    assert len(set(re.findall(r"nox(?:@|==)([\d.]+)", text + makefile))) == 1
