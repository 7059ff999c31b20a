"""FedAvg over layers that each client chooses anew every round."""

from __future__ import annotations

from typing import Any

from flwr.common import NDArrays

from ..parameter_exchange import ParameterPackerWithLayerNames
from .packed import Update, average_by_name, unpack_by_name, weights_of
from .packed_fedavg import PackedFedAvg

_PACKER = ParameterPackerWithLayerNames()


class DynamicLayerRule:
    """Average each layer over the clients that sent it."""

    def __init__(self, *, weighted_aggregation: bool = True, **fedavg: Any) -> None:
        self.weighted_aggregation = weighted_aggregation
        super().__init__(**fedavg)

    def combine(self, updates: list[Update]) -> NDArrays:
        """Average by name."""
        weights = weights_of(updates, self.weighted_aggregation)
        layers = average_by_name(unpack_by_name(updates, _PACKER), weights)
        return _PACKER.pack_parameters(list(layers.values()), list(layers))


class FedAvgDynamicLayer(DynamicLayerRule, PackedFedAvg):
    """FedAvg for clients that each send only some layers of the model, others in every round.

    A client returns k layers and an array of their k names; the server sends back, in order of first appearance, those
    layers that at least one client sent, each averaged over the clients that sent it. Layers that nobody sent are not
    part of the list: clients keep theirs. In round 1 clients get all arrays as ``start()`` was given them.

    Parameters
    ----------
    weighted_aggregation : bool
        Whether a layer is averaged by the clients' number of examples, or all count the same.
    **fedavg
        What Flower's ``FedAvg`` takes.

    References
    ----------
    H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas. Communication-Efficient Learning of Deep Networks
    from Decentralized Data. AISTATS 2017. https://arxiv.org/abs/1602.05629, layer by layer
    """
