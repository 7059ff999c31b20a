"""What every test stands on: no telemetry, no deadline, one thread, and a checkpoint home of its own."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.lab.bucket import S3Server

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
# Read when NumPy is imported: over tiny arrays, threads of several processes would mostly wait for each other.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Most of a test's time would be spent in `fsync`, which memory does not need. What a disk loses is simulated; in which
# order the real one is asked is seen by strace, and what needs a disk's own ways asks for one.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# How long an example takes says more of the machine than of the code.
settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")


@pytest.fixture(autouse=True)
def checkpoint_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's own checkpoint home."""
    home = tmp_path / "checkpoint-home"
    monkeypatch.setenv("FLWR_CKPT_HOME", str(home))
    return home


OPTIONAL = ("dp_accounting", "matplotlib", "moto", "obstore", "opacus", "safetensors", "sklearn", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run of the tests say which optional packages it goes without, and do the long loop of kills in pieces."""
    parser.addoption(
        "--without", action="append", default=[], choices=OPTIONAL, help="an optional package to do without"
    )
    parser.addoption("--kills", type=int, default=1000, help="how many servers to kill in all (slow test)")
    parser.addoption("--kills-folder", default=None, help="where the kills are counted; given again, they go on there")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to start without an optional package that nobody gave up: its tests would be skipped in silence."""
    without = config.getoption("--without")
    if missing := [name for name in OPTIONAL if find_spec(name) is None and name not in without]:
        flags = " ".join(f"--without {name}" for name in missing)
        raise pytest.UsageError(f"not installed: {', '.join(missing)}. Install .[dev], or go without: {flags}")


def pytest_collection_finish() -> None:
    """Two of Flower's strategies collect garbage several times a round: not through all that the tests have loaded."""
    gc.freeze()


def pytest_report_header(config: pytest.Config) -> str:
    """Say what the tests go without."""
    return f"without: {', '.join(config.getoption('--without')) or 'nothing'}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Skip the modules that import what this run goes without; the summary names each of them."""
    report: Any = yield
    raised = report.call.excinfo.value if report.outcome == "failed" else None
    cause = raised.__cause__ if raised is not None else None
    if isinstance(cause, ImportError) and str(cause.name).partition(".")[0] in collector.config.getoption("--without"):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"without {cause.name}")
    return report


TABLES = {  # the name under which a test records (what, phase, round, outcome): the title of the table
    "killed": "killed by SIGKILL and resumed, with new node ids and replies in another order",
    "module": "server modules with real training, killed by SIGKILL and resumed: bits, or the privacy spent",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print tables of everything that was killed and resumed, and at which moments; then what was counted."""
    _write_moments(terminalreporter)
    _write_counts(terminalreporter)


def _write_moments(terminalreporter: Any) -> None:
    for name, title in TABLES.items():
        rows: dict[str, dict[tuple[str, int], str]] = {}
        for report in terminalreporter.stats.get("passed", []):
            for recorded, value in getattr(report, "user_properties", []):
                if recorded == name:
                    what, phase, server_round, outcome = value
                    rows.setdefault(what, {})[(phase, server_round)] = outcome
        if rows:
            terminalreporter.section(title)
            _write_table(terminalreporter.write_line, rows)


def _write_counts(terminalreporter: Any) -> None:
    """Add up what tests recorded as ``counted``: (what was tried, {what: how many})."""
    totals: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for recorded, value in getattr(report, "user_properties", []):
            if recorded == "counted":
                tried, numbers = value
                totals.setdefault(tried, Counter()).update(numbers)
    if totals:
        terminalreporter.section("faults tried, and what they did to what had been reported durable")
        width = max(map(len, totals))
        for tried, numbers in sorted(totals.items()):
            told = ", ".join(f"{number} {what}" for what, number in numbers.items())
            terminalreporter.write_line(f"{tried.ljust(width)}  {told}")


def _write_table(write: Callable[[str], None], rows: dict[str, dict[tuple[str, int], str]]) -> None:
    moments = sorted({moment for row in rows.values() for moment in row}, key=lambda m: (m[1], m[0]))
    width = max(map(len, rows))
    write(" " * width + "".join(f"  {phase} {server_round}".rjust(13) for phase, server_round in moments))
    for what, row in sorted(rows.items()):
        write(what.ljust(width) + "".join(row.get(moment, "-").rjust(13) for moment in moments))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Start an S3 server in this process."""
    from tests.lab.bucket import S3Server  # only for tests that ask for it: it may not be installed

    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Lead obstore to that server, without faults at first."""
    from tests.lab.bucket import none

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3_server.requests.clear()
    yield s3_server
    s3_server.fault = none
