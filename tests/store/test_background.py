"""The thread that writes, driven by stubs that stop and fail on command: no sleeps, no clocks of the real world."""

from __future__ import annotations

import contextlib
import ctypes
import linecache
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flwr_ckpt.store import BackgroundWriter, Blob, CheckpointError, Draft, FencedError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0  # how long a wait may last that is to end; only a broken writer ever takes it


class Disk:
    """Commits that can be held up, or fail; remembers what happened, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.released: list[int] = []
        self.failing: dict[int, BaseException] = {}
        self.errors: list[tuple[int, BaseException]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.retain_gate = threading.Event()
        self.retain_gate.set()
        self.retain_begun = threading.Semaphore(0)
        self.retained = 0
        self.retain_error: BaseException | None = None

    def commit(self, draft: Draft) -> None:
        self.begun.release()
        assert self.gate.wait(PATIENCE)
        if draft.round in self.failing:
            raise self.failing[draft.round]
        self.log.append(f"{draft.phase} {draft.round}")

    def retain(self) -> None:
        self.retain_begun.release()
        assert self.retain_gate.wait(PATIENCE)
        self.retained += 1
        if self.retain_error is not None:
            raise self.retain_error

    def on_error(self, draft: Draft, error: BaseException) -> None:
        self.errors.append((draft.round, error))

    def heavy(self, server_round: int, phase: str = "train") -> Draft:
        return Draft(server_round, phase, (Blob("w", b"1"),), release=self._releaser(server_round))  # type: ignore[arg-type]

    def light(self, server_round: int, phase: str = "evaluate") -> Draft:
        return Draft(server_round, phase, release=self._releaser(server_round))  # type: ignore[arg-type]

    def _releaser(self, server_round: int) -> Callable[[], None]:
        return lambda: self.released.append(server_round)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writer(disk: Disk) -> Iterator[BackgroundWriter]:
    writer = BackgroundWriter(disk.commit, disk.retain, on_error=disk.on_error)
    yield writer
    disk.gate.set()
    disk.retain_gate.set()
    with contextlib.suppress(BaseException):  # each test asserts for itself what is raised
        writer.close()


class Call:
    """A call in a thread of its own, which is expected to block."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.result: object = None
        self._function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error

    def finish(self) -> object:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the call is still blocked"
        if self.error is not None:
            raise self.error
        return self.result


def until_blocked(writer: BackgroundWriter, callers: int = 1) -> None:
    """Return once that many threads besides the writer's own wait for a change."""
    while len(writer._changed._waiters) < callers:  # type: ignore[attr-defined]
        os.sched_yield()


def hold_first(disk: Disk, writer: BackgroundWriter) -> None:
    """Round 1 is being written, and stays so until the gate opens."""
    disk.gate.clear()
    writer.submit(disk.heavy(1))
    assert disk.begun.acquire(timeout=PATIENCE)


def test_drafts_are_written_in_order_and_released_once(disk: Disk, writer: BackgroundWriter) -> None:
    for server_round in range(1, 6):
        writer.submit(disk.heavy(server_round))
        writer.submit(disk.light(server_round))
    writer.flush()
    assert disk.log == [f"{phase} {number}" for number in range(1, 6) for phase in ("train", "evaluate")]
    assert sorted(disk.released) == sorted([*range(1, 6)] * 2)


def test_submit_returns_while_the_commit_is_still_under_way(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    assert writer.submit(disk.heavy(2)) == 0.0
    assert disk.log == []
    assert disk.released == []


def test_a_second_waiting_draft_with_arrays_blocks(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(disk.heavy(2))
    third = Call(lambda: writer.submit(disk.heavy(3)))
    until_blocked(writer)
    assert [job.draft.round for job in writer._queue] == [2]
    disk.gate.set()
    assert isinstance(third.finish(), float)
    writer.flush()
    assert disk.log == ["train 1", "train 2", "train 3"]


def test_arrays_of_the_state_count_as_arrays(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(Draft(2, "evaluate", state=(Blob("m", b"1"),)))
    third = Call(lambda: writer.submit(Draft(2, "central", state=(Blob("m", b"2"),))))
    until_blocked(writer)
    disk.gate.set()
    third.finish()
    writer.flush()
    assert disk.log == ["train 1", "evaluate 2", "central 2"]


def test_drafts_without_arrays_never_block(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(disk.heavy(2))
    for server_round in range(2, 50):
        writer.submit(disk.light(server_round))
    writer.submit(Draft(50, "train", arrays=(), state=()))
    disk.gate.set()
    writer.flush()
    assert len(disk.log) == 51


def test_wait_returns_when_rounds_up_to_its_own_are_written(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(disk.light(2))
    writer.wait(0)
    waiting = Call(lambda: writer.wait(1))
    until_blocked(writer)
    disk.gate.set()
    waiting.finish()
    assert disk.log[0] == "train 1"


def test_wait_counts_a_failed_commit_as_done(disk: Disk, writer: BackgroundWriter) -> None:
    disk.failing[1] = OSError("disk full")
    writer.submit(disk.heavy(1))
    writer.wait(1)
    assert disk.errors == [(1, disk.failing[1])]


def test_a_failed_commit_is_reported_and_the_next_is_written(disk: Disk, writer: BackgroundWriter) -> None:
    disk.failing = {1: OSError("disk full"), 2: MemoryError("no memory"), 3: SystemExit(1)}
    for server_round in (1, 2, 3, 4):
        writer.submit(disk.heavy(server_round))
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert disk.errors == list(disk.failing.items())
    assert disk.log == ["train 4"]
    assert disk.released == [1, 2, 3, 4]
    writer.flush()  # what was raised once is not raised again


def test_a_broken_error_handler_or_release_stops_nothing(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    disk.failing[1] = OSError("disk full")
    writer = BackgroundWriter(disk.commit, disk.retain, on_error=broken)
    writer.submit(disk.heavy(1))
    writer.submit(Draft(2, "train", release=broken))
    writer.submit(disk.light(3))
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert disk.log == ["train 2", "evaluate 3"]
    assert "Handling a failed commit of round 1" in caplog.text
    assert "Releasing the buffers of round 2" in caplog.text


def test_after_a_fence_nothing_is_written(disk: Disk, writer: BackgroundWriter) -> None:
    fence = disk.failing[1] = FencedError("taken over")
    disk.gate.clear()
    writer.submit(disk.heavy(1))
    writer.submit(disk.heavy(2))
    writer.submit(disk.light(3))
    blocked = Call(lambda: writer.submit(disk.heavy(4)))
    until_blocked(writer)
    assert writer.fenced is None
    disk.gate.set()
    for call in (blocked.finish, writer.flush, writer.flush, lambda: writer.submit(disk.light(5)), writer.close):
        with pytest.raises(FencedError) as caught:
            call()
        assert caught.value is fence
    assert writer.fenced is fence
    assert disk.log == []
    assert disk.errors == []
    assert disk.retained == 0
    assert sorted(disk.released) == [1, 2, 3, 4, 5]


def test_retention_runs_after_a_durable_commit_only(disk: Disk, writer: BackgroundWriter) -> None:
    disk.failing[1] = OSError("disk full")
    writer.submit(disk.heavy(1))
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert disk.retained == 0


def test_flush_does_not_wait_for_retention_and_close_does(disk: Disk, writer: BackgroundWriter) -> None:
    disk.retain_gate.clear()
    writer.submit(disk.heavy(1))
    writer.flush()
    assert disk.retain_begun.acquire(timeout=PATIENCE)
    assert disk.retained == 0
    closing = Call(writer.close)
    disk.retain_gate.set()
    closing.finish()
    assert disk.retained == 1


def test_retention_calls_that_pile_up_are_joined(disk: Disk, writer: BackgroundWriter) -> None:
    disk.retain_gate.clear()
    writer.submit(disk.heavy(1))
    assert disk.retain_begun.acquire(timeout=PATIENCE)
    for server_round in range(2, 9):
        writer.submit(disk.heavy(server_round))
    writer.flush()
    disk.retain_gate.set()
    writer.close()
    assert disk.retained == 2


def test_a_failing_retention_is_logged_and_tried_again(
    disk: Disk, writer: BackgroundWriter, caplog: pytest.LogCaptureFixture
) -> None:
    disk.retain_error = OSError("busy")
    writer.submit(disk.heavy(1))
    assert disk.retain_begun.acquire(timeout=PATIENCE)
    writer.submit(disk.heavy(2))
    writer.close()
    assert disk.retained == 2
    assert "could not be removed (busy)" in caplog.text


def test_a_fence_that_retention_meets_stops_the_writer(disk: Disk, writer: BackgroundWriter) -> None:
    disk.retain_error = FencedError("taken over")
    writer.submit(disk.heavy(1))
    while writer.fenced is None:
        os.sched_yield()
    with pytest.raises(FencedError):
        writer.submit(disk.heavy(2))
    assert disk.log == ["train 1"]


def test_close_writes_what_was_handed_over_and_ends_the_threads(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(disk.heavy(2))
    closing = Call(writer.close)
    until_blocked(writer)
    disk.gate.set()
    closing.finish()
    assert disk.log == ["train 1", "train 2"]
    assert not any(thread.is_alive() for thread in writer._threads)
    writer.close()
    with pytest.raises(CheckpointError, match=r"round 3 .* closed"):
        writer.submit(disk.heavy(3))
    assert disk.released == [1, 2, 3]


def interrupt(call: Call, writer: BackgroundWriter) -> None:
    """Throw SystemExit into the thread of a blocked call, as Flower does when a run is stopped."""
    target = ctypes.c_ulong(call.thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(SystemExit))
    # It arrives when the thread next runs Python code: wake it without giving it what it waits for.
    with writer._lock:
        writer._changed.notify_all()


def test_a_caller_stopped_while_it_waits_leaves_a_sound_writer(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    writer.submit(disk.heavy(2))
    third = Call(lambda: writer.submit(disk.heavy(3)))
    until_blocked(writer)
    interrupt(third, writer)
    with pytest.raises(SystemExit):
        third.finish()
    assert disk.released == [3]
    disk.gate.set()
    writer.submit(disk.heavy(4))
    writer.close()
    assert disk.log == ["train 1", "train 2", "train 4"]
    assert sorted(disk.released) == [1, 2, 3, 4]


def test_a_flush_that_is_stopped_can_be_done_again(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    flushing = Call(writer.flush)
    until_blocked(writer)
    interrupt(flushing, writer)
    with pytest.raises(SystemExit):
        flushing.finish()
    disk.gate.set()
    writer.flush()
    assert disk.log == ["train 1"]


def test_a_caller_stopped_at_any_line_of_submit_leaves_a_sound_writer(disk: Disk) -> None:
    """Stop `submit` before each of its lines in turn, its helpers' among them, until it gets through."""

    entered: set[tuple[FrameType, int]] = set()

    def leaves_with(frame: FrameType) -> bool:
        """A ``with`` is traced again on its way out, before the lock is given back: there no signal can strike."""
        here = (frame, frame.f_lineno)
        before = here in entered
        entered.add(here)
        return before and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")

    def submit_stopped_at(line: int) -> bool:
        seen = 0

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal seen
            if frame.f_code.co_filename.endswith("/background.py") and event == "line" and not leaves_with(frame):
                seen += 1
                if seen == line:
                    raise SystemExit
            return trace

        sys.settrace(trace)
        try:
            writer.submit(disk.heavy(line))
        except SystemExit:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 0
    stopped = True
    unreleased = []
    while stopped:
        line += 1
        disk.log.clear()
        disk.released.clear()
        writer = BackgroundWriter(disk.commit, disk.retain, on_error=disk.on_error)
        stopped = submit_stopped_at(line)
        writer.submit(disk.light(0))
        writer.close()
        assert disk.log in ([f"train {line}", "evaluate 0"], ["evaluate 0"])
        assert disk.released.count(line) <= 1, "released twice: its buffers may be in use again"
        if line not in disk.released:
            unreleased.append(line)
    assert line > 12
    assert max(unreleased) <= 5, "submit has taken the draft over by its fifth line"


def test_in_a_child_made_by_fork_it_refuses(disk: Disk, writer: BackgroundWriter) -> None:
    hold_first(disk, writer)
    child = os.fork()
    if child == 0:
        failures = 0
        for call in (lambda: writer.submit(disk.heavy(7)), lambda: writer.wait(1), writer.flush):
            try:
                call()
                failures += 1
            except CheckpointError as error:
                failures += "fork" not in str(error)
        writer.close()
        os._exit(failures + (disk.released != [7]))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    disk.gate.set()
    writer.flush()
    assert disk.log == ["train 1"]


@pytest.mark.parametrize(("closing", "expected"), [("", ""), ("atexit.register(writer.close)", "12")])
def test_the_interpreter_exits(closing: str, expected: str) -> None:
    script = f"""
import atexit, sys, threading
from flwr_ckpt.store import BackgroundWriter, Draft
held = threading.Event()
def commit(draft):
    held.wait()
    sys.stdout.write(str(draft.round))
writer = BackgroundWriter(commit, lambda: None, on_error=print)
{closing}
atexit.register(held.set) if {bool(closing)} else None
writer.submit(Draft(1, "train"))
writer.submit(Draft(2, "train"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def block_once(disk: Disk, writer: BackgroundWriter, pass_time: Callable[[], None]) -> float:
    """Have one call of `submit` blocked; the clock moves while it is."""
    hold_first(disk, writer)
    writer.submit(disk.heavy(2))
    call = Call(lambda: writer.submit(disk.heavy(3)))
    until_blocked(writer)
    pass_time()
    disk.gate.set()
    blocked = call.finish()
    writer.flush()
    while disk.begun.acquire(blocking=False):
        pass
    assert isinstance(blocked, float)
    return blocked


def test_noticeable_waiting_is_logged_but_not_each_time(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    writer = BackgroundWriter(disk.commit, disk.retain, on_error=disk.on_error, clock=lambda: now[0])
    for seconds in (0.25, 2.0, 1.0, 1.5, 1.0):
        blocked = block_once(disk, writer, lambda seconds=seconds: now.append(now.pop() + seconds))  # type: ignore[misc]
        assert blocked == pytest.approx(seconds)
    writer.close()
    first, second = (record.getMessage() for record in caplog.records)
    assert "waited 2.0 s" in first
    assert "2.2 s in all" in first
    assert "more slowly than rounds" in first
    assert "4.8 s in all" in second
