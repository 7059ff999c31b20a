"""Kill a Flower server in the middle of a round, start it again, and compare with a run that was left alone."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from flower_lab import SERVER, FlowerLab, LabError, Outcome, Progress, Run
from flwr_ckpt import CheckpointStore

APP = Path(__file__).resolve().parents[1] / "examples" / "digits"
RUN_NAME = "digits"
NUM_CLIENTS = 4
NUM_ROUNDS = 6
KILLED_IN = 4
# The round before the one that was killed may still have been on its way to the disk; no other may be trained again.
FIRST_TO_TRAIN_AGAIN = KILLED_IN - 1


def main() -> int:
    """Run the demo; the exit status says whether the killed run ended as the other."""
    # What is told to end goes by the exceptions that close a lab, and leaves no process behind.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    started = time.monotonic()
    print(f"examples/digits under real Flower: FedAdam, {NUM_CLIENTS} clients, {NUM_ROUNDS} rounds; takes two minutes")
    try:
        with FlowerLab() as lab:
            alone, _ = _finish(lab, "1. A run that is left alone")
        with FlowerLab() as lab:
            _kill(lab, f"2. Another, whose server is killed in round {KILLED_IN}")
            resumed, trained_again = _finish(lab, "3. The same command once more")
    except LabError as error:
        print(f"\nFAIL: {error}")
        return 1

    _print_metrics(alone, resumed)
    checks = {
        f"rounds 1 to {FIRST_TO_TRAIN_AGAIN - 1} were not trained again": min(trained_again) >= FIRST_TO_TRAIN_AGAIN,
        "the metrics of all rounds are the same": alone.history == resumed.history,
        "the final model is the same, bit for bit": alone.model_digest == resumed.model_digest,
    }
    print()
    for claim, holds in checks.items():
        print(f"  {'yes' if holds else 'NO '}  {claim}")
    print(f"\n{'PASS' if all(checks.values()) else 'FAIL'} after {time.monotonic() - started:.0f} s")
    return 0 if all(checks.values()) else 1


def _start(lab: FlowerLab, progress: Progress) -> Run:
    config = {"num-clients": NUM_CLIENTS, "num-server-rounds": NUM_ROUNDS, "progress-file": str(progress.path)}
    return lab.run(APP, config, num_supernodes=NUM_CLIENTS)


def _finish(lab: FlowerLab, title: str) -> tuple[Outcome, dict[int, int]]:
    print(f"\n{title}", flush=True)
    progress = lab.progress()
    begun_before = len(progress.read())
    log = _start(lab, progress).finish()
    for line in log.splitlines():
        if "Resumed after round" in line:
            print(f"  the log says:    {line.partition(':')[2].strip()}")
    trained = progress.rounds(begun_before)
    print(f"  clients trained: {_describe(trained)}")
    outcome = Outcome.of(CheckpointStore(lab.checkpoint_home / RUN_NAME))
    print(f"  final model:     sha256 {outcome.model_digest}")
    return outcome, trained


def _kill(lab: FlowerLab, title: str) -> None:
    print(f"\n{title}", flush=True)
    progress = lab.progress()
    run = _start(lab, progress)
    run.wait_until(lambda: KILLED_IN in progress.rounds())
    server = lab.kill(*SERVER)
    run.abandon()
    print(f"  SIGKILL:         process {server.pid}, the one in which Flower runs the ServerApp")
    print(f"  clients trained: {_describe(progress.rounds())}")


def _describe(trained: dict[int, int]) -> str:
    return "rounds " + ", ".join(
        f"{server_round}" if count == NUM_CLIENTS else f"{server_round} ({count} of {NUM_CLIENTS} clients)"
        for server_round, count in trained.items()
    )


def _print_metrics(alone: Outcome, resumed: Outcome) -> None:
    shown = ("train/loss", "evaluate/accuracy", "central/accuracy")
    print("\n" + "round".ljust(8) + "".join(f"{name:>20}" for name in shown) + "    (left alone | killed and resumed)")
    for server_round in range(NUM_ROUNDS + 1):
        cells = (
            " | ".join(_number(outcome.history[name].get(server_round)) for outcome in (alone, resumed))
            for name in shown
        )
        print(f"{server_round:<8}" + "".join(f"{cell:>20}" for cell in cells))


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"


if __name__ == "__main__":
    sys.exit(main())
