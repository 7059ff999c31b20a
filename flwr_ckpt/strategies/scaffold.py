"""SCAFFOLD, and what both of Flower's APIs share of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord
from flwr.common import NDArrays

from .packed import Update, average_lists, check_shapes
from .packed_fedavg import AppendingFedAvg


class Model(Protocol):
    """A torch module, as far as it matters here: this package must be importable without torch."""

    def parameters(self) -> Iterable[Any]:
        """Its parameters."""


class ScaffoldRule:
    """The server's side of SCAFFOLD over packed lists: weights, then control variates."""

    num_available: int

    def __init__(
        self, *, learning_rate: float, initial_control_variates: NDArrays | None, model: Model | None, **fedavg: Any
    ) -> None:
        self.learning_rate = learning_rate
        self.initial_control_variates = _initial(initial_control_variates, model)
        self.num_control_variates = len(self.initial_control_variates)
        super().__init__(**fedavg)

    def append(self, weights: NDArrays) -> NDArrays:
        """Pack weights and the first control variates."""
        return [*weights, *self.initial_control_variates]

    def combine_with(self, sent: NDArrays, updates: list[Update]) -> NDArrays:
        """Step towards the mean of the clients' weights, and by their share of the mean change of their variates."""
        for update in updates:
            check_shapes(update.sender, update.arrays, sent)
        self.initial_control_variates = []  # no longer needed: the list that was sent holds what became of them
        split = len(sent) - self.num_control_variates
        mean = average_lists([update.arrays for update in updates], [1.0] * len(updates))
        # The server's variate is the mean over all clients; those that did not answer keep theirs.
        share = len(updates) / max(self.num_available, len(updates))
        towards = [new - old for old, new in zip(sent[:split], mean[:split], strict=True)]
        return _step(sent[:split], self.learning_rate, towards) + _step(sent[split:], share, mean[split:])


def _initial(variates: NDArrays | None, model: Model | None) -> NDArrays:
    if variates is None and model is not None:
        trained = [parameter.detach().cpu().numpy() for parameter in model.parameters() if parameter.requires_grad]
        variates = [np.zeros_like(parameter) for parameter in trained]
    if not variates:
        raise ValueError(
            "SCAFFOLD needs to know which parameters are trained: give a model, for control variates of zero, or "
            "initial_control_variates, one for each parameter that requires gradients"
        )
    return variates


def _step(start: NDArrays, rate: float, changes: NDArrays) -> NDArrays:
    return [np.asarray(old + rate * change, change.dtype) for old, change in zip(start, changes, strict=True)]


class Scaffold(ScaffoldRule, AppendingFedAvg):
    """SCAFFOLD: control variates correct the drift of clients whose data differ.

    Server and clients exchange the n weights of the model (its ``state_dict``) and behind them the p control variates,
    one for each parameter that requires gradients: p is below n where a model has BatchNorm. The server sends its own
    variates c; a client returns its weights and the *change* of its variate cᵢ, which it keeps between rounds. All
    clients count the same, whatever their number of examples.

    Parameters
    ----------
    learning_rate : float
        The server's step towards the mean of the clients' weights.
    initial_control_variates : ArrayRecord, optional
        The server's first variates, in the order of the model's parameters.
    model : torch.nn.Module, optional
        In their place: variates of zero for each parameter of this model that requires gradients.
    **fedavg
        What Flower's ``FedAvg`` takes.

    Raises
    ------
    ValueError
        If there are no control variates to start with.

    Notes
    -----
    ``start()`` takes the plain weights; everybody else, an ``evaluate_fn`` from round 1 on among them, sees the packed
    list, under the keys ``"0"``, ``"1"``, …

    References
    ----------
    S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh. SCAFFOLD: Stochastic Controlled
    Averaging for Federated Learning. ICML 2020. https://arxiv.org/abs/1910.06378
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1.0,
        initial_control_variates: ArrayRecord | None = None,
        model: Model | None = None,
        **fedavg: Any,
    ) -> None:
        variates = None if initial_control_variates is None else initial_control_variates.to_numpy_ndarrays()
        super().__init__(learning_rate=learning_rate, initial_control_variates=variates, model=model, **fedavg)
