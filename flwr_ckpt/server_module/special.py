"""Modules of models that are special, while their parameters are plain: wrapped by Opacus, or not known at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checkpointers import OpacusCheckpointer, PerRoundStateCheckpointer
from ..parameter_exchange import ParameterExchanger
from .base import BaseServerCheckpointAndStateModule, ModelCheckpointers
from .checks import check_exchanger
from .packing import ScaffoldServerCheckpointAndStateModule

if TYPE_CHECKING:
    from torch import nn


class OpacusServerCheckpointAndStateModule(BaseServerCheckpointAndStateModule):
    """The model is wrapped by Opacus; all model checkpointers must be Opacus checkpointers.

    Parameters are those of `BaseServerCheckpointAndStateModule`.

    Raises
    ------
    TypeError
        If one of the checkpointers is not.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        parameter_exchanger: ParameterExchanger | None = None,
        model_checkpointers: ModelCheckpointers = None,
        state_checkpointer: PerRoundStateCheckpointer | None = None,
    ) -> None:
        super().__init__(model, parameter_exchanger, model_checkpointers, state_checkpointer)
        _check_for_opacus(self.model_checkpointers)


class DpScaffoldServerCheckpointAndStateModule(ScaffoldServerCheckpointAndStateModule):
    """SCAFFOLD with a model that is wrapped by Opacus; all model checkpointers must be Opacus checkpointers.

    Parameters
    ----------
    model, model_checkpointers, state_checkpointer
        As in `BaseServerCheckpointAndStateModule`.

    Raises
    ------
    TypeError
        If one of the checkpointers is not.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        model_checkpointers: ModelCheckpointers = None,
        state_checkpointer: PerRoundStateCheckpointer | None = None,
    ) -> None:
        super().__init__(model, model_checkpointers, state_checkpointer)
        _check_for_opacus(self.model_checkpointers)


class NnUnetServerCheckpointAndStateModule(BaseServerCheckpointAndStateModule):
    """The model comes later: set `model` once clients have sent the plans it is built from.

    Parameters are those of `BaseServerCheckpointAndStateModule`; model checkpointers need the exchanger from the start.
    """

    def _validate_model_checkpointer_components(self) -> None:
        check_exchanger(self.parameter_exchanger)


def _check_for_opacus(checkpointers: Sequence[object] | None) -> None:
    others = [type(item).__name__ for item in checkpointers or () if not isinstance(item, OpacusCheckpointer)]
    if others:
        raise TypeError(
            f"the model is wrapped by Opacus, and {', '.join(others)} cannot save it; OpacusCheckpointers can"
        )
