"""A user's server, which mypy checks strictly against the installed package: its types are promised, too."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam

from flwr_ckpt import CheckpointError, CheckpointingStrategy, CheckpointStore, KeepBest, KeepLatest

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and look at what is stored."""
    keep = KeepLatest(3) | KeepBest(2, "evaluate/loss", mode="min")
    strategy = CheckpointingStrategy(FedAdam(eta=0.1), "digits", keep=keep, seed=1)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=int(context.run_config["num-server-rounds"]))
    resumed: int | None = strategy.resumed_round
    attempts: dict[int, int] = strategy.attempts
    assert resumed is None or attempts


def look() -> list[int]:
    """Say which rounds are there, best first."""
    store = CheckpointStore("digits")
    try:
        best = store.best("evaluate/loss", "min")
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    newest: list[int] = [record.round for record in store.rounds()]
    return newest if best is None else [best.round, *newest]
