"""FedProx whose proximal weight adapts itself, and what both of Flower's APIs share of it."""

from __future__ import annotations

import math
from typing import Any

from flwr.common import NDArrays

from ..parameter_exchange import ParameterPackerAdaptiveConstraint
from . import logs
from .packed import Update, average, average_lists, unpack_beside, weights_of
from .packed_fedavg import AppendingFedAvg

_PACKER = ParameterPackerAdaptiveConstraint()


class AdaptiveConstraintRule:
    """The server's side of adaptive FedProx over packed lists: weights, then the constraint's weight."""

    def __init__(
        self,
        *,
        initial_loss_weight: float = 1.0,
        adapt_loss_weight: bool = False,
        loss_weight_delta: float = 0.1,
        loss_weight_patience: int = 5,
        weighted_aggregation: bool = True,
        weighted_train_losses: bool = False,
        **fedavg: Any,
    ) -> None:
        self.loss_weight = float(initial_loss_weight)
        self.adapt_loss_weight = adapt_loss_weight
        self.loss_weight_delta = loss_weight_delta
        self.loss_weight_patience = loss_weight_patience
        self.loss_weight_patience_counter = 0
        self.previous_loss = math.inf
        self.weighted_aggregation = weighted_aggregation
        self.weighted_train_losses = weighted_train_losses
        super().__init__(**fedavg)

    def append(self, weights: NDArrays) -> NDArrays:
        """Pack weights and the constraint's weight, a float64 of shape ``()``."""
        return _PACKER.pack_parameters(weights, self.loss_weight)

    def combine_with(self, sent: NDArrays, updates: list[Update]) -> NDArrays:
        """Average the weights, and let the average loss decide about the constraint's weight."""
        answers = [unpack_beside(update, _PACKER, sent[:-1]) for update in updates]
        weights = average_lists([arrays for arrays, _ in answers], weights_of(updates, self.weighted_aggregation))
        losses = [loss for _, loss in answers]
        self._adapt(float(average(losses, weights_of(updates, self.weighted_train_losses))))
        return self.append(weights)

    def _adapt(self, loss: float) -> None:
        if self.adapt_loss_weight and loss <= self.previous_loss:
            self.loss_weight_patience_counter += 1
            if self.loss_weight_patience_counter >= self.loss_weight_patience:
                self._change(max(0.0, self.loss_weight - self.loss_weight_delta), loss)
        elif self.adapt_loss_weight:
            self._change(self.loss_weight + self.loss_weight_delta, loss)
        self.previous_loss = loss

    def _change(self, loss_weight: float, loss: float) -> None:
        logs.info(
            "Train loss %g after %g: the constraint's weight goes from %g to %g",
            loss,
            self.previous_loss,
            self.loss_weight,
            loss_weight,
        )
        self.loss_weight = loss_weight
        self.loss_weight_patience_counter = 0


class FedAvgWithAdaptiveConstraint(AdaptiveConstraintRule, AppendingFedAvg):
    """FedAvg for clients with a penalty on drift (FedProx, Ditto, MR-MTL) whose weight μ follows the train loss.

    The server sends the weights of the model and, behind them, μ, a float64 of shape ``()``; a client returns its
    weights and in that place its train loss, without the penalty. μ grows when the average loss does, and shrinks after
    it has fallen a number of rounds in a row.

    Parameters
    ----------
    initial_loss_weight : float
        The first μ.
    adapt_loss_weight : bool
        Whether μ changes at all.
    loss_weight_delta : float
        By how much μ grows or shrinks.
    loss_weight_patience : int
        After how many rounds without a growing loss μ shrinks; never below 0.
    weighted_aggregation : bool
        Whether clients' weights are averaged by their number of examples, or all the same.
    weighted_train_losses : bool
        The same for the train losses.
    **fedavg
        What Flower's ``FedAvg`` takes.

    Notes
    -----
    ``start()`` takes the plain weights; everybody else, an ``evaluate_fn`` from round 1 on among them, sees the packed
    list, under the keys ``"0"``, ``"1"``, …

    References
    ----------
    T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith. Federated Optimization in Heterogeneous Networks.
    MLSys 2020. https://arxiv.org/abs/1812.06127
    """
