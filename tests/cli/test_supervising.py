"""`supervise`: it starts again, gives up, leaves the run to another, and never has two servers on one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_rig import Ran, opened, ran, unfinished, written

from flwr_ckpt import CheckpointStore
from flwr_ckpt.cli import supervisor as module
from flwr_ckpt.cli.attempts import Child, Ended
from flwr_ckpt.cli.supervisor import Supervisor
from flwr_ckpt.store import Draft, Server
from flwr_ckpt.store.format import servers as servers_module

Script = Callable[[], "Ended | None"]


@pytest.fixture
def run(checkpoint_home: Path) -> Path:
    return checkpoint_home / "digits"


@pytest.fixture(autouse=True)
def everybody_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of these tests are all this process: let them be gone unless a test says otherwise."""
    monkeypatch.setattr(Server, "running", property(lambda server: False))
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)


class Scripted:
    """An attempt that does what a test says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.forwarded: list[int] = []

    def forward(self, signum: int) -> None:
        self.forwarded.append(signum)

    def wait(self) -> Ended:
        return self._script() or Ended(0, False, "the last line")


def supervised(run: Path, *scripts: Script, patience: int = 3) -> int:
    """Supervise attempts that do these things, one after the other; a further one is an error."""
    left: Iterator[Script] = iter(scripts)
    supervisor = Supervisor(CheckpointStore(run), "digits", lambda: Scripted(next(left)), patience=patience, pause=0)
    code = supervisor.run()
    assert next(left, None) is None, "not all attempts were made"
    return code


def trains(run: Path, *rounds: int, end: bool = False) -> Script:
    """A server that saves rounds, and then dies or ends."""

    def script() -> None:
        writer = opened(run)
        written(writer, *rounds, num_rounds=4)
        if end:
            writer.commit(Draft(rounds[-1] if rounds else CheckpointStore(run).status().round or 0, "end"))

    return script


def fails(message: str = "ValueError: nope", code: int = 0) -> Script:
    return lambda: Ended(code, False, message)


def test_it_starts_again_until_the_run_is_finished(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert supervised(run, trains(run, 0, 1), trains(run, 2), fails(), trains(run, 3, 4, end=True)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "flwr-ckpt: digits: not finished (round 1 of 4); starting again. Last: the last line"
    assert lines[-1] == "flwr-ckpt: digits: finished, round 4 of 4"


def test_it_gives_up_with_the_last_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [trains(run, 0, 1), fails("one"), trains(run, 2), fails("two"), fails("three"), fails("KeyError: four")]
    assert supervised(run, *scripts) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "flwr-ckpt: digits: giving up: 3 attempts in a row without a new commit; round 2 of 4. "
        "The last error: KeyError: four"
    )


def test_where_nothing_ever_appears_the_place_is_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert supervised(run, fails(), patience=1) == 1
    assert f"at {run} (is that where the server keeps it?)" in capsys.readouterr().err


def test_sending_the_same_training_again_and_again_is_no_progress(run: Path) -> None:
    def attempts() -> None:
        opened(run).commit(Draft(2, "attempt"))

    assert supervised(run, trains(run, 0, 1), attempts, attempts, attempts, attempts) == 1


def test_a_finished_run_is_started_once_for_it_may_be_extended(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trains(run, 0, 1, end=True)()
    assert supervised(run, fails(code=0)) == 0
    assert capsys.readouterr().err == "flwr-ckpt: digits: was finished already, round 1 of 4\n"
    assert supervised(run, trains(run, 2), trains(run, 3, end=True)) == 0
    assert supervised(run, *[fails(code=1)] * 3) == 1, "a command that fails has extended nothing"


def test_a_rewind_in_between_is_gone_on_from(run: Path) -> None:
    def rewound() -> None:
        trains(run, 0, 1, 2, 3)()
        CheckpointStore(run).rewind(1)

    assert supervised(run, rewound, trains(run, 2, 3, 4, end=True)) == 0


def test_a_run_that_was_removed_is_not_begun_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def removed() -> None:
        trains(run, 2)()
        CheckpointStore(run).remove()

    assert supervised(run, trains(run, 0, 1), removed) == 2
    assert "has been removed meanwhile" in capsys.readouterr().err


# --- another server ----------------------------------------------------------------------------------------------


def alive(monkeypatch: pytest.MonkeyPatch, running: bool | None) -> None:
    monkeypatch.setattr(Server, "running", property(lambda server: running))


@pytest.mark.parametrize("running", [True, None], ids=["on this host", "elsewhere"])
def test_it_leaves_a_run_that_another_server_took_over(
    running: bool | None, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken() -> Ended:
        trains(run, 0, 1)()
        opened(run)
        alive(monkeypatch, running)
        return Ended(0, True, "FencedError: another server")

    assert supervised(run, taken) == 5
    assert "another server has taken this run over: " in capsys.readouterr().err


def test_a_second_opening_is_somebody_elses(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken() -> None:
        trains(run, 0, 1)()
        opened(run)
        alive(monkeypatch, None)

    assert supervised(run, taken) == 5


def test_a_server_that_was_fenced_by_one_that_is_gone_is_started_again(run: Path) -> None:
    def taken() -> Ended:
        trains(run, 0, 1)()
        opened(run)
        return Ended(0, True, "FencedError: another server")

    assert supervised(run, taken, trains(run, 2, end=True)) == 0


def test_nothing_is_started_while_a_server_of_this_host_is_alive(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = iter([True, True, True, False])
    monkeypatch.setattr(Server, "running", property(lambda server: next(looked, False)))
    trains(run, 0, 1)()

    def starts() -> None:
        assert next(looked, None) is None, "the server before was still alive"
        trains(run, 2, end=True)()

    assert supervised(run, starts) == 0
    assert " is writing it; waiting for it to end\n" in capsys.readouterr().err


def test_its_own_server_that_outlives_the_command_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flwr run --stream` may lose its stream while the server goes on, to the end."""
    really = CheckpointStore.status
    waited = []

    def status(store: CheckpointStore) -> object:
        found = really(store)
        if waited and not found.finished and len(waited) < 3:
            waited.append(found)
            alive(monkeypatch, True)
            if len(waited) == 3:
                trains(run, end=True)()
        return found

    monkeypatch.setattr(CheckpointStore, "status", status)

    def loses_its_stream() -> None:
        trains(run, 0, 1, 2)()
        waited.append(None)

    assert supervised(run, loses_its_stream) == 0


# --- real commands -----------------------------------------------------------------------------------------------

SERVER = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from cli_rig import *
writer = opened(Path(sys.argv[1]))
done = writer.resumed.commit.round if writer.resumed else -1
print("resuming after", done, flush=True)
written(writer, done + 1, num_rounds=1)
if done + 1 == 1:
    writer.commit(Draft(1, "end"))
os._exit(9)
"""


def test_a_real_command_that_dies_after_each_round(run: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    ended = ran("supervise", "digits", "--pause", 0, "--", sys.executable, "-c", SERVER, run, *paths)
    assert ended.code == 0
    assert ended.out == "resuming after -1\nresuming after 0\n"
    assert ended.err.splitlines()[-1] == "flwr-ckpt: digits: finished, round 1 of 1"


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("echo 'ValueError: first'; echo; echo last >&2; exit 3", Ended(3, False, "ValueError: first")),
        ("echo one; echo two", Ended(0, False, "two")),
        ("exit 4", Ended(4, False, "exit code 4, no output")),
        ("kill -9 $$", Ended(-9, False, "ended by SIGKILL, no output")),
        (
            "printf '\\033[91mERROR \\033[0m: flwr_ckpt.FencedError: taken\\n'",
            Ended(0, True, "ERROR : flwr_ckpt.FencedError: taken"),
        ),
    ],
)
def test_a_commands_last_error_is_kept(script: str, ended: Ended) -> None:
    assert Child(["sh", "-c", script]).wait() == ended


def test_what_a_command_leaves_behind_does_not_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperLink that `flwr run` starts goes on, and may have the output open."""
    monkeypatch.setattr("flwr_ckpt.cli.attempts._LAST_WORDS", 0.01)
    child = Child(["sh", "-c", "sleep 600 & echo started"])
    assert child.wait().code == 0
    child.forward(signal.SIGKILL)


def test_a_command_that_cannot_be_started_is_one_line(run: Path) -> None:
    ended = ran("supervise", "digits", "--", "no-such-command")
    assert ended == Ran(1, "", "flwr-ckpt: 'no-such-command' cannot be started: No such file or directory\n")
    assert ran("supervise", "digits").code == 2


TOLD = """
import os, signal, sys
def told(signum, frame):
    os.write(1, b"got it\\n")  # it may interrupt the other print
    sys.exit()
signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGINT, told)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_command_waited_for(signum: signal.Signals, run: Path) -> None:
    program = [sys.executable, "-c", "from flwr_ckpt.cli import main; main()"]
    process = subprocess.Popen(
        [*program, "supervise", "digits", "--", sys.executable, "-c", TOLD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signum, "got it\n")
    assert f"digits: stopped by {signum.name}, round -" in err


def test_a_server_that_outlives_the_signal_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(run)

    def interrupted() -> None:
        alive(monkeypatch, True)
        os.kill(os.getpid(), signal.SIGTERM)

    attempt = Scripted(interrupted)
    supervisor = Supervisor(CheckpointStore(run), "digits", lambda: attempt, patience=3, pause=0)
    with supervisor.taking_signals():
        assert supervisor.run() == 128 + signal.SIGTERM
    assert attempt.forwarded == [signal.SIGTERM]
    assert "is writing it; `flwr ls` and `flwr stop` end it" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_mark_of_a_process_is_its_own() -> None:
    assert servers_module.process_mark(os.getpid()) == servers_module.process_mark(os.getpid())
    assert servers_module.process_mark(2**22 + 1) is None
