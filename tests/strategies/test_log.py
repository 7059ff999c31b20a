"""What the log of a run says of its checkpoints: few lines, each of use the morning after."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg
from lab.legacy import clients, initial_parameters, serve
from lab.message import FakeGrid, average_client, start

from flwr_ckpt import CheckpointCorruptError, CheckpointingStrategy, CheckpointMismatchError, KeepAll
from flwr_ckpt.store import locate
from flwr_ckpt.store.format import payloads
from flwr_ckpt.store.format.readable import readable_age
from flwr_ckpt.strategies.checkpointing import telling


class GoneError(Exception):
    """The server is gone."""


def dying_in(server_round: int) -> FakeGrid:
    class Dying(FakeGrid):
        def send_and_receive(self, messages: object, *, timeout: float | None = None) -> object:
            if self.sent and self.sent[-1] == ("evaluate", server_round - 1):
                raise GoneError
            return super().send_and_receive(messages, timeout=timeout)  # type: ignore[arg-type]

    return Dying(average_client, 1)


def dies_at_once() -> FakeGrid:
    class Dying(FakeGrid):
        def send_and_receive(self, messages: object, *, timeout: float | None = None) -> object:
            raise GoneError

    return Dying(average_client, 1)


def run(caplog: pytest.LogCaptureFixture, level: int, grid: FakeGrid, name: str = "digits", **kwargs: int) -> list[str]:
    """Run a server, and give the lines about checkpoints that are no warnings (of a place in memory, say)."""
    caplog.clear()
    with caplog.at_level(level, "flwr"), suppress(GoneError):
        start(CheckpointingStrategy(FedAvg(), name, keep=KeepAll()), grid, **kwargs)
    ours = [record for record in caplog.records if hasattr(record, "flwr_ckpt") and record.levelno <= logging.INFO]
    return [record.getMessage() for record in ours]


def test_a_run_that_dies_and_goes_on(checkpoint_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = f"Checkpoints of this run: {checkpoint_home}/digits (a run name under $FLWR_CKPT_HOME)"
    lines = run(caplog, logging.INFO, dying_in(3))
    assert lines[0] == place
    assert not any(line.startswith(("Resumed", "Round", "The run is finished")) for line in lines)
    lines = run(caplog, logging.INFO, FakeGrid(average_client, 1))
    assert lines[:2] == [
        place,
        "Resumed after round 2 of 4 (train, evaluate, central), saved just now; what rounds 1 to 2 have done is not "
        "repeated",
    ]
    assert lines[-1].startswith(f"The run is finished and kept in {checkpoint_home}/digits (5 rounds up to round 4, ")
    assert lines[-1].endswith(" KiB); look at it with `flwr-ckpt ls digits`")
    lines = run(caplog, logging.INFO, FakeGrid(average_client, 1))
    assert lines[-1] == (
        f"The run in {checkpoint_home}/digits is finished after 4 rounds: nothing was trained; a larger num_rounds "
        "extends it, another run name or `flwr-ckpt rm digits` starts over"
    )


def test_the_first_round_is_announced_after_a_death_in_it(caplog: pytest.LogCaptureFixture) -> None:
    with suppress(GoneError):
        start(CheckpointingStrategy(FedAvg(), "digits"), dies_at_once(), evaluate_fn=None)
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(FedAvg(), "digits"), FakeGrid(average_client, 1), evaluate_fn=None)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("Resumed after round 0") for line in lines)
    assert "[ROUND 1/4]" in lines


def test_a_server_that_broke_off_in_replay_does_not_silence_the_next(caplog: pytest.LogCaptureFixture) -> None:
    before = CheckpointingStrategy(LegacyFedAvg(initial_parameters=initial_parameters()), "legacy")
    serve(before, clients(1), 2)
    before.close()
    stuck = CheckpointingStrategy(LegacyFedAvg(initial_parameters=initial_parameters()), "legacy")
    stuck.initialize_parameters(clients(2))
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(FedAvg(), "digits"), FakeGrid(average_client, 1), evaluate_fn=None)
    assert "[ROUND 1/4]" in [record.getMessage() for record in caplog.records]
    stuck.close()


def test_a_server_that_is_still_there_is_named_by_the_next(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    beside = subprocess.Popen([sys.executable, "-c", _OPENS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert beside.stdout is not None
        assert beside.stdout.readline() == "opened\n"
        with caplog.at_level(logging.INFO, "flwr"):
            start(CheckpointingStrategy(FedAvg(), tmp_path / "run"), FakeGrid(average_client, 1))
        assert any(record.getMessage().startswith(f"Process {beside.pid} on ") for record in caplog.records)
    finally:
        beside.kill()
        beside.wait()


_OPENS = """
import sys, time
from flwr_ckpt.store import KeepAll, RunWriter, locate
RunWriter.open(locate(sys.argv[1]), KeepAll())
print("opened", flush=True)
time.sleep(60)
"""


def test_each_commit_is_a_line_for_whoever_looks_closely(caplog: pytest.LogCaptureFixture) -> None:
    lines = run(caplog, logging.DEBUG, FakeGrid(average_client, 1), num_rounds=1)
    commits = [line.split(" is on disk")[0] for line in lines if " is on disk, " in line]
    assert commits == [
        f"Round {at}" for at in ("0 (initial)", "0 (central)", "1 (train)", "1 (evaluate)", "1 (central)", "1 (end)")
    ]


def test_what_to_type_names_the_run_where_the_command_finds_it(tmp_path: Path) -> None:
    assert telling._name(locate("digits")) == "digits"
    assert telling._name(locate("digits", tmp_path / "other")) == str(tmp_path / "other/digits")
    assert telling._name(locate(tmp_path / "a b")) == str(tmp_path / "a b")
    assert telling.command("rewind", "/a b", 3) == "flwr-ckpt rewind '/a b' 3"


def test_errors_say_what_to_type(checkpoint_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = checkpoint_home / "digits"
    run(caplog, logging.INFO, FakeGrid(average_client, 1))
    with pytest.raises(CheckpointMismatchError, match=f"or go back first, with `flwr-ckpt rewind {where} 2`"):
        run(caplog, logging.INFO, FakeGrid(average_client, 1), num_rounds=2)
    for manifest in where.glob("round-*/*.manifest"):
        manifest.write_bytes(b"damaged")
    with pytest.raises(CheckpointCorruptError, match=f"`flwr-ckpt verify {where}` says more"):
        run(caplog, logging.INFO, FakeGrid(average_client, 1))


def test_a_long_restore_says_how_far_it_has_come(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "_SAID_EVERY", 0.0)
    run(caplog, logging.INFO, dying_in(3))
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        start(CheckpointingStrategy(FedAvg(), "digits"), FakeGrid(average_client, 1))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Read ")]
    assert said[-1] == "Read 64 B of 64 B of a checkpoint"


@pytest.mark.parametrize(
    ("passed", "said"),
    [(-99, "just now"), (59, "just now"), (61, "1 minute ago"), (7_300, "2 hours ago"), (200_000, "2 days ago")],
)
def test_how_long_ago_a_moment_was(passed: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9 + passed)
    assert readable_age(1e9) == said
