"""Flower's types, by their public names: what is a strategy, a record, a handle of the running server.

The public imports resolve on every supported Flower, while the modules that define the classes have moved.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import Parameters
from flwr.server import ClientManager, Grid, History
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy

__all__ = [
    "RECORDS",
    "RUNTIME_HANDLES",
    "STRATEGIES",
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "History",
    "MetricRecord",
    "Parameters",
    "RecordDict",
]

STRATEGIES = (Strategy, LegacyStrategy)
RECORDS = (ConfigRecord, MetricRecord, RecordDict)

# New in every run, and leading to everything else: never walked, never missed.
RUNTIME_HANDLES = (Context, Grid, ClientManager, ClientProxy, Message)

PUBLIC_MODULES = (
    "flwr.app",
    "flwr.common",
    "flwr.server",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.server.strategy",
)
