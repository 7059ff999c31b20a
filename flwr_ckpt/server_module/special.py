"""Modules of models that are special, while their parameters are not: wrapped by Opacus, or not known at first."""

from __future__ import annotations

from ..checkpointers import OpacusCheckpointer
from .base import BaseServerCheckpointAndStateModule
from .checks import check_exchanger
from .packing import ScaffoldServerCheckpointAndStateModule


class OpacusServerCheckpointAndStateModule(BaseServerCheckpointAndStateModule):
    """The model is wrapped by Opacus, and all model checkpointers are Opacus checkpointers.

    Parameters are those of `BaseServerCheckpointAndStateModule`.
    """

    checkpointer_type = OpacusCheckpointer


class DpScaffoldServerCheckpointAndStateModule(ScaffoldServerCheckpointAndStateModule):
    """SCAFFOLD with a model that is wrapped by Opacus; all model checkpointers are Opacus checkpointers."""

    checkpointer_type = OpacusCheckpointer


class NnUnetServerCheckpointAndStateModule(BaseServerCheckpointAndStateModule):
    """The model comes later: set `model` once clients have sent the plans it is built from.

    Parameters are those of `BaseServerCheckpointAndStateModule`; model checkpointers need the exchanger from the start.
    """

    def _validate_model_checkpointer_components(self) -> None:
        check_exchanger(self.parameter_exchanger)
