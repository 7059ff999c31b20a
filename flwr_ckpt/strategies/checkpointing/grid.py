"""The grid a wrapped strategy is handed: Flower's own, with three things done on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid


class CheckpointingGrid(Grid):
    """Passes everything on to Flower's grid.

    On the way it tells `offered` which node ids there are, lets `arrange` put them in order, and answers empty sends
    by itself: replay makes two a round, which take 16 ms each in deployment.
    """

    def __init__(
        self, grid: Grid, arrange: Callable[[list[int]], list[int]], offered: Callable[[list[int]], None]
    ) -> None:
        self._grid = grid
        self._arrange = arrange
        self._offered = offered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        self._grid.set_run(*args, **kwargs)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        ids = self._arrange(list(self._grid.get_node_ids()))
        self._offered(ids)
        return ids

    def get_nodes(self) -> Iterable[Any]:
        nodes = {node.node_id: node for node in self._grid.get_nodes()}
        return [nodes[node_id] for node_id in self._arrange(list(nodes))]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        outgoing = list(messages)
        if not outgoing:
            return []
        return self._grid.send_and_receive(outgoing, timeout=timeout)
