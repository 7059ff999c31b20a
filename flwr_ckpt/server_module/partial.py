"""Modules of partial formats: a list names the part of the model that it brings, and the rest is as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.common import NDArray, Parameters, ndarrays_to_parameters

from ..parameter_exchange import ParameterPackerWithLayerNames, SparseCooParameterPacker
from ..parameter_exchange.model_arrays import check_names, model_arrays, model_shapes, put_arrays
from ..parameter_exchange.partial_parameter_exchanger import named_arrays
from .arriving import to_ndarrays, to_parameters
from .base import ServerParameters
from .packing import FormatServerCheckpointAndStateModule

if TYPE_CHECKING:
    from torch import nn

_FULL_MODEL = "full_model"


class PartialServerCheckpointAndStateModule(FormatServerCheckpointAndStateModule):
    """Parameters are routed by name onto the last full model, which is state.

    The first full model is `model` as it is given, until a plain list of a whole one comes: what is exchanged before
    the first round.
    """

    # By itself, not in `model`: that one is overwritten with models of other rounds, and by whoever evaluates it.
    _full_model: Mapping[str, NDArray] | None = None

    def take_parameters(self, server_parameters: ServerParameters) -> None:
        super().take_parameters(server_parameters)
        if self.model is not None:
            self._full_model = self._routed(to_parameters(server_parameters, self._array_names()), self.model)

    def maybe_load_state(self, state_checkpoint_name: str) -> dict[str, Any] | None:
        state = super().maybe_load_state(state_checkpoint_name)
        if state is not None and hasattr(state.get("model"), "state_dict"):
            self._full_model = model_arrays(state["model"])
        return state

    def state_dict(self) -> dict[str, Any]:
        full_model = None if self._full_model is None else dict(self._full_model)
        return {**super().state_dict(), _FULL_MODEL: full_model}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        full_model = state[_FULL_MODEL]
        if full_model is not None and self.model is not None:
            shapes = model_shapes(self.model)
            check_names(full_model, shapes, type(self.model).__name__, whole=True)
            full_model = {name: full_model[name] for name in shapes}  # a list of the whole model is in this order
        self._full_model = full_model

    def _hydrate_model_for_checkpointing(self, server_parameters: Parameters) -> None:
        model, _ = self._model_and_exchanger()
        put_arrays(model, self._routed(server_parameters, model))

    def _routed(self, server_parameters: Parameters, model: nn.Module) -> dict[str, NDArray]:
        full_model = model_arrays(model) if self._full_model is None else self._full_model
        packer = self._model_and_exchanger()[1].parameter_packer
        return {**full_model, **named_arrays(packer, to_ndarrays(server_parameters), model)}

    def _whole_model(self) -> Parameters | None:
        if self._full_model is None:
            return None
        return ndarrays_to_parameters([np.asarray(array) for array in self._full_model.values()])


class LayerNamesServerCheckpointAndStateModule(PartialServerCheckpointAndStateModule):
    """Dynamic layer exchange: some layers, then an array of their names."""

    def _packer_for(self, model: nn.Module) -> ParameterPackerWithLayerNames:
        return ParameterPackerWithLayerNames()


class SparseCooServerCheckpointAndStateModule(PartialServerCheckpointAndStateModule):
    """Sparse exchange: elements of some tensors in coordinate form, then the tensors' names; other elements are 0."""

    def _packer_for(self, model: nn.Module) -> SparseCooParameterPacker:
        return SparseCooParameterPacker()
