"""This project, by its public door."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from flwr_ckpt import CheckpointingStrategy

from ..flower_loop import Clients, Rounds, prepared_strategy
from ..instruments import Stopwatch
from .contender import Arrived, Contender


class FlwrCkpt(Contender):
    """`CheckpointingStrategy` as it is without arguments."""

    _strategy: Any

    def attach(self, strategy: Strategy, initial: ArrayRecord) -> Strategy:
        """Wrap."""
        self._strategy = CheckpointingStrategy(strategy, self.folder)
        return self._strategy  # type: ignore[no-any-return]  # made as any strategy is

    def wait(self) -> None:
        """Flush."""
        self._strategy.flush()

    def load(self, server_round: int, like: ArrayRecord, arrived: Arrived) -> None:
        """Start the server again, up to the moment its strategy configures the next round."""
        resumed, stopwatch = _Resumed(arrived), Stopwatch()
        strategy = CheckpointingStrategy(prepared_strategy(resumed, stopwatch), self.folder)
        try:
            strategy.start(Clients(resumed, stopwatch), like, num_rounds=server_round + 1)
        except _Enough:
            return
        raise AssertionError("the run was not resumed")


class WithBestModel(FlwrCkpt):
    """With a checkpointer that keeps the best model in a file of its own; here each round is better than the last."""

    def attach(self, strategy: Strategy, initial: ArrayRecord) -> Strategy:
        """Wrap, with a module that knows the model."""
        from flwr_ckpt.checkpointers import BestLossTorchModuleCheckpointer
        from flwr_ckpt.parameter_exchange import FullParameterExchanger
        from flwr_ckpt.server_module import BaseServerCheckpointAndStateModule

        best = BestLossTorchModuleCheckpointer(self.folder / "models", "best.safetensors")
        module = BaseServerCheckpointAndStateModule(_torch_model(initial), FullParameterExchanger(), best)
        self._strategy = CheckpointingStrategy(strategy, self.folder / "run", module=module)
        return self._strategy  # type: ignore[no-any-return]  # made as any strategy is


def _torch_model(arrays: ArrayRecord) -> Any:
    import torch

    model = torch.nn.Module()
    for name, array in arrays.items():
        layer = torch.nn.Module()
        layer.register_parameter("weight", torch.nn.Parameter(torch.zeros(array.shape)))
        model.add_module(name.removesuffix(".weight"), layer)
    return model


class _Enough(Exception):  # noqa: N818 - nothing has gone wrong
    """Ends a server that has shown what it was started for."""


class _Resumed(Rounds):
    """Rounds that end where they begin."""

    def __init__(self, arrived: Arrived) -> None:
        self._arrived = arrived

    def configure(self, server_round: int, arrays: ArrayRecord) -> None:
        self._arrived(arrays)
        raise _Enough
