"""FedAvg over single parameters that each client chooses anew every round."""

from __future__ import annotations

from typing import Any

from flwr.common import NDArrays

from ..parameter_exchange import SparseCooParameterPacker
from .packed import Update, average_by_name, unpack_by_name, weights_of
from .packed_fedavg import PackedFedAvg

_PACKER = SparseCooParameterPacker()


class SparseCooRule:
    """Average each tensor over the clients that sent parts of it."""

    def __init__(self, *, weighted_aggregation: bool = True, **fedavg: Any) -> None:
        self.weighted_aggregation = weighted_aggregation
        super().__init__(**fedavg)

    def combine(self, updates: list[Update]) -> NDArrays:
        """Average by name."""
        weights = weights_of(updates, self.weighted_aggregation)
        tensors = average_by_name(unpack_by_name(updates, _PACKER), weights)
        parts = [_PACKER.extract_coo_info_from_dense(tensor) for tensor in tensors.values()]
        values, indices, shapes = ([part[i] for part in parts] for i in range(3))
        return _PACKER.pack_parameters(values, (indices, shapes, list(tensors)))


class FedAvgSparseCooTensor(SparseCooRule, PackedFedAvg):
    """FedAvg for clients that each send only some parameters of the model, as sparse tensors in coordinate format.

    A client returns for k tensors their k arrays of values, k arrays of int64 indices (number of values, number of
    dimensions), k shapes, and an array of the k names; the server sends back the same. What a client does not list of a
    tensor that it names is 0; a tensor is averaged over the clients that name it. In round 1 clients get all arrays as
    ``start()`` was given them.

    Parameters
    ----------
    weighted_aggregation : bool
        Whether a tensor is averaged by the clients' number of examples, or all count the same.
    **fedavg
        What Flower's ``FedAvg`` takes.

    References
    ----------
    A. F. Aji, K. Heafield. Sparse Communication for Distributed Gradient Descent. EMNLP 2017.
    https://arxiv.org/abs/1704.05021
    """
