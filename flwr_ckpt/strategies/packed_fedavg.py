"""FedAvg of the message API, for packed lists: where the strategies of this package meet Flower."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import NDArrays
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from .packed import Update


class PackedFedAvg(FedAvg):
    """FedAvg over replies whose arrays are a packed list that a subclass combines."""

    @abstractmethod
    def combine(self, updates: list[Update]) -> NDArrays:
        """Make the next global list of what clients returned; there is at least one update."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the packed lists that clients returned, and aggregate their metrics as FedAvg does.

        Raises
        ------
        ValueError
            If a reply does not fit; it says whose, what was found and what was expected.
        """
        # Flower's own check wants the same keys in all replies, which partial lists do not have.
        valid, _ = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        if not valid:
            return None, None
        arrays = ArrayRecord(self.combine([_update(message, self.weighted_by_key) for message in valid]))
        metrics = self.train_metrics_aggr_fn([message.content for message in valid], self.weighted_by_key)
        return arrays, metrics


class AppendingFedAvg(PackedFedAvg):
    """FedAvg that sends something along behind the model's weights.

    ``start()`` takes the plain weights; from the first message on the arrays are a packed list, under the keys
    ``"0"``, ``"1"``, …, whose first entries are the weights in their order.

    Attributes
    ----------
    current_arrays : ArrayRecord or None
        The packed list that was sent last or, once a round is aggregated, is sent next.
    num_available : int
        How many nodes there were when clients were last sampled.
    num_sampled : int
        How many of them were.
    """

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.current_arrays: ArrayRecord | None = None
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
        if self.current_arrays is None:
            raise ValueError(f"{type(self).__name__}: aggregate_train was called before configure_train")
        return self.combine_with(self.current_arrays.to_numpy_ndarrays(), updates)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the packed list to a sample of the nodes."""
        self.current_arrays = self._packed(arrays)
        messages = list(super().configure_train(server_round, self.current_arrays, config, grid))
        self.num_available, self.num_sampled = len(list(grid.get_node_ids())), len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine what clients returned (see `PackedFedAvg.aggregate_train`)."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.current_arrays = arrays if arrays is not None else self.current_arrays
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the packed list to a sample of the nodes."""
        return super().configure_evaluate(server_round, self._packed(arrays), config, grid)

    def _packed(self, arrays: ArrayRecord) -> ArrayRecord:
        """Tell the initial weights, which Flower hands over until a round succeeds, from a packed list."""
        current = self.current_arrays
        if current is not None and len(arrays) == len(current):
            return arrays
        packed = ArrayRecord(self.append(arrays.to_numpy_ndarrays()))
        if current is not None and len(packed) != len(current):
            raise ValueError(
                f"{type(self).__name__} was handed {len(arrays)} arrays; expected {len(current)}, as it returned last, "
                f"or {len(current) - len(packed) + len(arrays)} weights"
            )
        return packed


def _update(message: Message, weighted_by_key: str) -> Update:
    sender = f"node {message.metadata.src_node_id}"
    arrays = list(message.content.array_records.values())
    if len(arrays) != 1:
        raise ValueError(f"{sender} returned {len(arrays)} ArrayRecords, expected one")
    metrics = message.content.metric_records.values()
    counts = [record[weighted_by_key] for record in metrics if weighted_by_key in record]
    if len(counts) != 1 or isinstance(counts[0], list):
        raise ValueError(f"{sender} returned {counts} as {weighted_by_key!r}, expected one number in its MetricRecord")
    return Update(sender, arrays[0].to_numpy_ndarrays(), counts[0])
