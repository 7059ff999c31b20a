"""What stands in for clients and their manager in the legacy API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.common import Code, Status
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy

from ...store import CheckpointError

_OK = Status(code=Code.OK, message="replayed")


class ReplayedReply:
    """The reply of a round that is only replayed: it says OK, and nothing else.

    A server of the user's that reads more would take an invented answer for a client's.
    """

    status = _OK

    def __init__(self, server: str) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        raise CheckpointError(
            f"{self._server} reads {name!r} of a client's reply by itself. That round is replayed from the checkpoint, "
            "where only what the strategy answered is kept; let the strategy's aggregate_fit or aggregate_evaluate "
            "read it"
        )


class ReplayClient(ClientProxy):
    """The one client that a replayed round is sent to: it answers at once, in this process."""

    def __init__(self, server: str) -> None:
        super().__init__("replay")
        self._server = server

    def _reply(self, *_: Any, **__: Any) -> Any:
        return ReplayedReply(self._server)

    get_properties = get_parameters = fit = evaluate = reconnect = _reply


def arranged_manager(
    manager: ClientManager, arrange: Callable[[list[str]], list[str]], offered: Callable[[list[str]], None]
) -> ClientManager:
    """Show a client manager whose clients stand in the order that `arrange` gives.

    The user's manager is not touched: this is another object of a subclass made on the spot, over the same attributes,
    whose `clients` is a sorted view. A manager of another build than Flower's (no `clients`) is passed on as it is.

    Under ``flwr run`` Flower has put functions in front of the manager's methods, which look for new nodes and then
    call the method of the user's object. The view lets them look, and then calls the method on itself.
    """
    if not isinstance(getattr(manager, "clients", None), dict):
        return manager

    def clients(self: Any) -> dict[str, ClientProxy]:
        known: dict[str, ClientProxy] = manager.clients  # type: ignore[attr-defined]
        ids = arrange(list(known))
        offered(ids)
        return {cid: known[cid] for cid in ids if cid in known}

    def replace(self: Any, known: dict[str, ClientProxy]) -> None:
        manager.clients = known  # type: ignore[attr-defined]

    body: dict[str, Any] = {name: property(_refreshed(name, manager)) for name in _put_in_front(manager)}
    cls = type(type(manager).__name__, (type(manager),), {**body, "clients": property(clients, replace)})
    view: ClientManager = object.__new__(cls)
    object.__setattr__(view, "__dict__", manager.__dict__)
    return view


def _put_in_front(manager: ClientManager) -> list[str]:
    """Methods of a manager's class that functions of Flower's hide in the object."""
    return [
        name
        for name, value in vars(manager).items()
        if callable(value)
        and hasattr(type(manager), name)
        and str(getattr(value, "__module__", "")).startswith("flwr.")
    ]


def _refreshed(name: str, manager: ClientManager) -> Callable[[Any], Callable[..., Any]]:
    """Make a method of the view; a property, because only that comes before the function in the shared attributes."""

    def bind(view: Any) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(type(manager), name).__get__(view)

        def call(*args: Any, **kwargs: Any) -> Any:
            manager.num_available()
            return method(*args, **kwargs)

        return call

    return bind
