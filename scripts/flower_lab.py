"""Real Flower runs on this machine, and the means to kill their server in the middle of a round.

Everything a lab starts, also what detaches itself, works in the lab's own folder: by that the lab finds its processes,
and ends them by their ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from flwr_ckpt import CheckpointStore

# What runs the ServerApp: in a simulation, in a deployment.
SERVER = ("flwr-simulation", "flwr-serverapp")
SUPERLINK = ("flower-superlink",)
POLL_SECONDS = 0.02
CLOSE_SECONDS = 20.0
STOP_SECONDS = 90.0  # Flower leaves a server that is stopped time to end by itself
RUN_SECONDS = 600.0  # a round of a deployment takes seconds, and half a minute where the machine has other work

Value = bool | int | float | str


class LabError(RuntimeError):
    """A run did not do what was waited for; the message ends with its log."""


@dataclass(frozen=True)
class Outcome:
    """What a run has left in its store: two runs that went the same way are equal here."""

    model_digest: str
    history: dict[str, dict[int, object]]

    @classmethod
    def of(cls, store: CheckpointStore) -> Outcome:
        """Read it; the digest is over the newest arrays' names, types, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in store.load().arrays.items():
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
        return cls(digest.hexdigest(), store.history())


@dataclass(frozen=True)
class Trained:
    """One training of one client, as the client wrote it down."""

    server_round: int
    partition_id: int


def wait_for_end(process: psutil.Process, timeout: float = STOP_SECONDS) -> None:
    """Wait until a process has ended; its parent, Flower's SuperLink, takes a while to ask how."""
    deadline = time.monotonic() + timeout
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            raise LabError(f"{process} has not ended within {timeout:.0f} s")
        time.sleep(POLL_SECONDS)


class Progress:
    """The file in which clients write down each training as it begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Trained]:
        """Read all that was begun, in the order in which it was."""
        if not self.path.exists():
            return []
        complete = self.path.read_text().rpartition("\n")[0]
        return [Trained(*map(int, line.split())) for line in complete.splitlines()]

    def rounds(self, start: int = 0) -> dict[int, int]:
        """Count the trainings of each round, from the given entry on."""
        return dict(sorted(Counter(trained.server_round for trained in self.read()[start:]).items()))


class Run:
    """One `flwr run`, whose log is streamed to a file."""

    def __init__(self, lab: FlowerLab, superlink: str, client: subprocess.Popen[bytes], log_path: Path) -> None:
        self._lab = lab
        self.superlink = superlink
        self._client = client
        self._log_path = log_path

    @property
    def run_id(self) -> str:
        """The number that Flower has given the run."""
        started = re.search(r"Successfully started run (\d+)", self.log())
        if started is None:
            raise LabError(f"The run did not start.\n{self.log()}")
        return started[1]

    def log(self) -> str:
        """Return what the run has logged so far."""
        return self._log_path.read_text(errors="replace")

    def exit_code(self, timeout: float = RUN_SECONDS) -> int:
        """Wait for the end of the command."""
        try:
            return self._client.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"The run did not end within {timeout:.0f} s.\n{self.log()}") from None

    def finish(self, timeout: float = RUN_SECONDS) -> str:
        """Wait for the end of the run and return its log; anything but a completed run is an error."""
        self.exit_code(timeout)
        status = self._lab.status_of(self.run_id, self.superlink)
        if status != "finished:completed":
            raise LabError(f"The run ended as {status}.\n{self.log()}")
        return self.log()

    def wait_until(self, reached: Callable[[], bool], timeout: float = RUN_SECONDS) -> None:
        """Wait until ``reached()`` holds; that the run ends before is an error."""
        deadline = time.monotonic() + timeout
        while not reached():
            if self._client.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"The run never came to what was waited for.\n{self.log()}")
            time.sleep(POLL_SECONDS)

    def abandon(self) -> None:
        """End the stream of the log: Flower takes a minute to notice that a server is gone, and streams until then."""
        self._client.kill()
        self._client.wait()


class FlowerLab:
    """A Flower with a home, ports and processes of its own; use it as a context manager."""

    def __init__(self) -> None:
        # Short, and not in a test's own folder: Ray makes Unix sockets in it, whose paths may have 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="lab-")).resolve()
        self.checkpoint_home = self.directory / "checkpoints"
        self._home = self.directory / "flwr"
        self._home.mkdir()
        self._commands = Path(sys.executable).parent
        self._environment = self._make_environment()
        self._num_runs = 0

    def __enter__(self) -> FlowerLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Value],
        *,
        num_supernodes: int | None = None,
        superlink: str = "local",
    ) -> Run:
        """Start `flwr run` on an app; a number of SuperNodes is for simulations, where Flower makes them."""
        self._num_runs += 1
        log_path = self.directory / f"run-{self._num_runs}.log"
        command = _flwr_run(app, run_config, num_supernodes, superlink)
        return Run(self, superlink, self._start("flwr", *command, log_path=log_path), log_path)

    def supervise(self, name: str, app: Path, run_config: Mapping[str, Value], *, num_supernodes: int) -> Run:
        """Start `flwr-ckpt supervise` on `flwr run`."""
        log_path = self.directory / "supervise.log"
        supervise = ("supervise", name, "--pause", "1", "--", "flwr")
        command = _flwr_run(app, run_config, num_supernodes, "local")
        return Run(self, "local", self._start("flwr-ckpt", *supervise, *command, log_path=log_path), log_path)

    def deploy(self, num_supernodes: int) -> str:
        """Start a SuperLink with SuperNodes on the loopback address; return the name that `run` knows it by."""
        address = f"127.0.0.1:{_free_port()}"
        (self._home / "config.toml").write_text(f'[superlink.lab]\naddress = "{address}"\ninsecure = true\n')
        host, port = address.split(":")
        self._start(
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *("--host", host, "--port", port, "--database", str(self.directory / "superlink.db")),
            log_path=self.directory / "superlink.log",
        )
        self._wait_for_port(int(port))
        for partition_id in range(num_supernodes):
            self._start(
                *("flower-supernode", "--insecure", "--superlink", address, "--port", str(_free_port())),
                *("--node-config", f"partition-id={partition_id} num-partitions={num_supernodes}"),
                log_path=self.directory / f"supernode-{partition_id}.log",
            )
        return "lab"

    def progress(self) -> Progress:
        """Return the file to be given to clients as `progress-file`."""
        return Progress(self.directory / "progress.txt")

    def kill(self, *commands: str) -> psutil.Process:
        """SIGKILL the one process that runs one of these commands, and return it."""
        victim = self.find(*commands)
        victim.kill()
        psutil.wait_procs([victim], timeout=CLOSE_SECONDS)
        return victim

    def terminate(self, *commands: str) -> psutil.Process:
        """SIGTERM the one process that runs one of these commands, wait until it is gone, and return it."""
        victim = self.find(*commands)
        victim.terminate()
        wait_for_end(victim)
        return victim

    def stop(self, run: Run) -> psutil.Process:
        """Ask Flower to stop a run, wait until the process of its server is gone, and return it."""
        victim = self.find(*SERVER)
        victim.suspend()  # asking takes seconds, in which it might come to the end
        self._ask("stop", run.run_id, run.superlink)
        victim.resume()
        wait_for_end(victim)
        return victim

    def find(self, *commands: str) -> psutil.Process:
        """Return the one process that runs one of these commands."""
        found = [process for process in self._processes() if _command(process) in commands]
        if len(found) != 1:
            raise LabError(f"One process should run {' or '.join(commands)}, {len(found)} do: {found}")
        return found[0]

    def status_of(self, run_id: str, superlink: str) -> str:
        """Return what Flower says of a run: its exit code does not tell."""
        listed = self._ask("ls", superlink, "--run-id", run_id, "--format", "json")
        return str(json.loads(listed)["runs"][0]["status"])

    def close(self) -> None:
        """End every process of the lab, and remove what it has left."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while left := self._processes():
            if time.monotonic() > deadline:
                raise LabError(f"Processes that do not end: {left}")
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        shutil.rmtree(self.directory)

    def _ask(self, *arguments: str) -> str:
        command = [self._commands / "flwr", *arguments]
        asked = subprocess.run(
            command, env=self._environment, cwd=self.directory, capture_output=True, text=True, timeout=120, check=False
        )
        if asked.returncode != 0:
            raise LabError(f"flwr {' '.join(arguments)} ended with {asked.returncode}\n{asked.stdout}{asked.stderr}")
        return asked.stdout

    def _make_environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
        return inherited | {
            "PATH": f"{self._commands}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(self.directory),
            "FLWR_HOME": str(self._home),
            "FLWR_CKPT_HOME": str(self.checkpoint_home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
            # flwr-ckpt is in this environment; an app's dependencies would be looked up in a registry.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _start(self, command: str, *arguments: str, log_path: Path) -> subprocess.Popen[bytes]:
        with log_path.open("wb") as log:
            return subprocess.Popen(
                [self._commands / command, *arguments],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_for_port(self, port: int, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if time.monotonic() > deadline:
                raise LabError(f"Nothing listens on port {port} after {timeout:.0f} s.")
            time.sleep(POLL_SECONDS)

    def _processes(self) -> list[psutil.Process]:
        # Some of Ray's write over their environment and outlive their parents, but all stay in the lab's folder.
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            folder = process.cwd()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False
        return Path(folder).is_relative_to(self.directory)


def _flwr_run(app: Path, run_config: Mapping[str, Value], num_supernodes: int | None, superlink: str) -> list[str]:
    command = ["run", str(app), superlink, "--stream", "--run-config", _to_toml(run_config)]
    if num_supernodes is not None:
        command += ["--federation-config", f"num-supernodes={num_supernodes} client-resources-num-cpus=1"]
    return command


def _command(process: psutil.Process) -> str:
    """Return the name of the console script that a process runs, or of its interpreter."""
    try:
        interpreter_and_script = process.cmdline()[:2]
    except psutil.NoSuchProcess:
        return ""
    return Path(interpreter_and_script[-1]).name if interpreter_and_script else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _to_toml(values: Mapping[str, Value]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())
