"""The strategies that Flower lacks, for its legacy API (``flwr.server.strategy.Strategy``).

They compute what those of `flwr_ckpt.strategies` do, with the constructor arguments of FL4Health's. Here ``Parameters``
are the packed list from round 0 on: `initial_parameters` are the plain weights, and what goes with them is added.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from flwr.common import (
    FitIns,
    FitRes,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg

from .adaptive_constraint import AdaptiveConstraintRule
from .client_level_dp import ClientLevelDPRule
from .dynamic_layer import DynamicLayerRule
from .packed import Update
from .scaffold import Model, ScaffoldRule
from .sparse_coo import SparseCooRule

__all__ = [
    "ClientLevelDPFedAvgM",
    "FedAvgDynamicLayer",
    "FedAvgSparseCooTensor",
    "FedAvgWithAdaptiveConstraint",
    "Scaffold",
]


class PackedFedAvg(FedAvg):
    """FedAvg over results that are packed lists, which a subclass combines."""

    @abstractmethod
    def combine(self, updates: list[Update]) -> NDArrays:
        """Make the next global list of what clients returned; there is at least one update."""

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Combine the packed lists that clients returned, and aggregate their metrics as FedAvg does.

        Raises
        ------
        ValueError
            If a result does not fit; it says whose, what was found and what was expected.
        """
        if not results or (failures and not self.accept_failures):
            return None, {}
        updates = [
            Update(f"client {client.cid}", parameters_to_ndarrays(result.parameters), result.num_examples)
            for client, result in results
        ]
        parameters = ndarrays_to_parameters(self.combine(updates))
        metrics: dict[str, Scalar] = {}
        if self.fit_metrics_aggregation_fn:
            metrics = self.fit_metrics_aggregation_fn([(result.num_examples, result.metrics) for _, result in results])
        return parameters, metrics


class AppendingFedAvg(PackedFedAvg):
    """FedAvg that sends something along behind the model's weights.

    Attributes
    ----------
    current_parameters : Parameters or None
        The packed list that was sent last or, once a round is aggregated, is sent next.
    num_available : int
        How many clients there were when they were last sampled.
    num_sampled : int
        How many of them were.
    """

    def __init__(self, *, initial_parameters: Parameters, **fedavg: Any) -> None:
        packed = self.append(parameters_to_ndarrays(initial_parameters))
        super().__init__(initial_parameters=ndarrays_to_parameters(packed), **fedavg)
        self.current_parameters: Parameters | None = None
        self.num_available = 0
        self.num_sampled = 0

    @abstractmethod
    def append(self, weights: NDArrays) -> NDArrays:
        """Pack the weights of a model that has not been trained yet."""

    @abstractmethod
    def combine_with(self, sent: NDArrays, updates: list[Update]) -> NDArrays:
        """Make the next packed list of the last one and of what clients returned."""

    def combine(self, updates: list[Update]) -> NDArrays:
        """Combine what clients returned with what was sent to them."""
        if self.current_parameters is None:
            raise ValueError(f"{type(self).__name__}: aggregate_fit was called before configure_fit")
        return self.combine_with(parameters_to_ndarrays(self.current_parameters), updates)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Send the packed list to a sample of the clients."""
        self.current_parameters = parameters
        instructions = super().configure_fit(server_round, parameters, client_manager)
        self.num_available, self.num_sampled = client_manager.num_available(), len(instructions)
        return instructions

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Combine what clients returned (see `PackedFedAvg.aggregate_fit`)."""
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        self.current_parameters = parameters if parameters is not None else self.current_parameters
        return parameters, metrics


class Scaffold(ScaffoldRule, AppendingFedAvg):
    """SCAFFOLD: control variates correct the drift of clients whose data differ.

    See `flwr_ckpt.strategies.Scaffold` for the method, what is exchanged, and the paper.

    Parameters
    ----------
    initial_parameters : Parameters
        The plain weights of the first model.
    learning_rate : float
        The server's step towards the mean of the clients' weights.
    initial_control_variates : Parameters, optional
        The server's first variates, in the order of the model's parameters.
    model : torch.nn.Module, optional
        In their place: variates of zero for each parameter of this model that requires gradients.
    **fedavg
        What Flower's ``FedAvg`` takes.

    Raises
    ------
    ValueError
        If there are no control variates to start with.
    """

    def __init__(
        self,
        *,
        initial_parameters: Parameters,
        learning_rate: float = 1.0,
        initial_control_variates: Parameters | None = None,
        model: Model | None = None,
        **fedavg: Any,
    ) -> None:
        variates = None if initial_control_variates is None else parameters_to_ndarrays(initial_control_variates)
        super().__init__(
            learning_rate=learning_rate,
            initial_control_variates=variates,
            model=model,
            initial_parameters=initial_parameters,
            **fedavg,
        )


class FedAvgWithAdaptiveConstraint(AdaptiveConstraintRule, AppendingFedAvg):
    """FedAvg for clients with a penalty on drift (FedProx, Ditto, MR-MTL) whose weight μ follows the train loss.

    See `flwr_ckpt.strategies.FedAvgWithAdaptiveConstraint` for the method, what is exchanged, the paper and the
    parameters; `initial_parameters`, the plain weights of the first model, are needed besides.
    """


class ClientLevelDPFedAvgM(ClientLevelDPRule, AppendingFedAvg):
    """FedAvg with server momentum and client-level differential privacy, whose clipping bound may adapt.

    See `flwr_ckpt.strategies.ClientLevelDPFedAvgM` for the method, what is exchanged, the papers and the parameters;
    `initial_parameters`, the plain weights of the first model, are needed besides.
    """


class FedAvgDynamicLayer(DynamicLayerRule, PackedFedAvg):
    """FedAvg for clients that each send only some layers of the model, others in every round.

    See `flwr_ckpt.strategies.FedAvgDynamicLayer` for the method, what is exchanged and the parameters.
    """


class FedAvgSparseCooTensor(SparseCooRule, PackedFedAvg):
    """FedAvg for clients that each send only some parameters of the model, as sparse tensors in coordinate format.

    See `flwr_ckpt.strategies.FedAvgSparseCooTensor` for the method, what is exchanged and the parameters.
    """
