"""The room that talks to Flower: `CheckpointingStrategy`, and the strategies that Flower lacks."""

from .adaptive_constraint import FedAvgWithAdaptiveConstraint
from .checkpointing import CheckpointingStrategy
from .client_level_dp import ClientLevelDPFedAvgM
from .dynamic_layer import FedAvgDynamicLayer
from .scaffold import Scaffold
from .sparse_coo import FedAvgSparseCooTensor

__all__ = [
    "CheckpointingStrategy",
    "ClientLevelDPFedAvgM",
    "FedAvgDynamicLayer",
    "FedAvgSparseCooTensor",
    "FedAvgWithAdaptiveConstraint",
    "Scaffold",
]
