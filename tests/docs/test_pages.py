"""Each page's blocks, from top to bottom: Python is run, commands are run or checked, configuration is parsed."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from typer.testing import CliRunner

from flwr_ckpt.cli.app import app
from flwr_ckpt.strategies.checkpointing.settings import PREFIX, parse_run_config
from tests.docs.blocks import PAGES, ROOT, Block, blocks
from tests.docs.prelude import Servers, make_names, train

ALL = [block for page in PAGES for block in blocks(page)]
SHOWN = {"", "text"}  # file listings and logs
NOT_RUN = 7  # blocks that say why they are not run: to be raised only knowingly


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages and block.not_run is None]


def app_config(block: Block) -> dict[str, Any]:
    """The run config in a block of TOML; nothing if it is about something else."""
    config: dict[str, Any] = tomli.loads(block.text).get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    return config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    run_config = {
        key: value for block in blocks(page) if block.language == "toml" for key, value in app_config(block).items()
    }
    servers, names = Servers(run_config), make_names(run_config)
    for block in of("python"):
        if block.page == page:
            text = block.text.replace('"/data/', f'"{tmp_path}/')  # where an example may write
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)
            if "@app.main()" in text or "def server_fn(" in text:
                servers.run(names)


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_commands_work(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "flwr-ckpt" in {command[0] for command, _ in commands(block)}:
        train("digits", num_rounds=6)
    for command, printed in commands(block):
        output = CHECKS[command[0]](command)
        assert not printed or normal(printed) == normal(output or ""), output


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_is_read(block: Block) -> None:
    parse_run_config({key: value for key, value in app_config(block).items() if key.startswith(PREFIX)})


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_read(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        assert {"apiVersion", "kind", "metadata"} <= set(document) or "services" in document


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_units_are_read(block: Block) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the standard library says to
    parser.read_string(block.text)
    assert {"Unit", "Service"} <= set(parser.sections())


def test_nothing_is_left_out() -> None:
    known = {"python", "console", "toml", "yaml", "ini", *SHOWN}
    assert not [str(block) for block in ALL if block.language not in known]
    left = {str(block): block.not_run for block in ALL if block.not_run is not None}
    assert len(left) == NOT_RUN, left


def commands(block: Block) -> list[tuple[list[str], str]]:
    """The commands of a block, each with what the block says that it prints: nothing, if that is left out."""
    first, *rest = block.text.replace("\\\n", " ").split("$ ") if block.text.startswith("$ ") else ("no command", "")
    assert not first, f"{block}: a command begins with '$ '"
    parts = [part.partition("\n") for part in rest]
    return [(shlex.split(line, comments=True), printed) for line, _, printed in parts]


def normal(output: str) -> str:
    """Times, sizes and scores aside, and how wide they make a column."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.:-]*", "0", output)).strip()


def check_make(command: list[str]) -> None:
    assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def check_pip(command: list[str]) -> None:
    known = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert command[1] == "install"
    for extras in re.findall(r"\[(.*?)\]", " ".join(command)):
        assert set(extras.split(",")) <= set(known), command


def check_flwr(command: list[str]) -> None:
    assert command[1] == "run"
    if "--run-config" in command:
        text = command[command.index("--run-config") + 1]
        pairs = tomli.loads("\n".join(re.findall(r"[\w-]+=(?:\"[^\"]*\"|\S+)", text)))
        assert pairs, command
        parse_run_config(pairs)


def run_flwr_ckpt(command: list[str]) -> str:
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.stdout


def check_export(command: list[str]) -> None:
    assert re.fullmatch(r"[A-Z_]+=.*", command[1]), command


CHECKS = {
    "export": check_export,
    "flwr": check_flwr,
    "flwr-ckpt": run_flwr_ckpt,
    "make": check_make,
    "pip": check_pip,
}
