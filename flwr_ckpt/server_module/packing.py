"""Modules of packed formats: the whole model, and something beside it in the same list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.common import NDArrays, Parameters

from ..checkpointers import PerRoundStateCheckpointer
from ..parameter_exchange import (
    FullParameterExchangerWithPacking,
    ParameterPacker,
    ParameterPackerAdaptiveConstraint,
    ParameterPackerWithClippingBit,
    ParameterPackerWithControlVariates,
)
from ..parameter_exchange.model_arrays import by_position
from .arriving import NamedWeights, to_ndarrays
from .base import BaseServerCheckpointAndStateModule, ModelCheckpointers

if TYPE_CHECKING:
    from torch import nn


class PackingServerCheckpointAndStateModule(BaseServerCheckpointAndStateModule):
    """Parameters are unpacked, and the weights among them go into the model.

    Parameters are those of `BaseServerCheckpointAndStateModule`; the exchanger also has ``unpack_parameters``.
    """

    exchanger_methods = (*BaseServerCheckpointAndStateModule.exchanger_methods, "unpack_parameters")

    def _hydrate_model_for_checkpointing(self, server_parameters: Parameters) -> None:
        model, exchanger = self._model_and_exchanger()
        weights = to_ndarrays(server_parameters)
        # Before the first aggregate a server of the message API holds a plain model under its own names.
        if not isinstance(server_parameters, NamedWeights):
            weights, additional = exchanger.unpack_parameters(weights)
            self._check_additional(additional, model)
        exchanger.pull_parameters(weights, model)

    def _check_additional(self, additional: Any, model: nn.Module) -> None:
        """Check what came beside the weights, as far as the packer cannot."""


class FormatServerCheckpointAndStateModule(PackingServerCheckpointAndStateModule):
    """A packed format whose exchanger need not be given: a subclass says with which packer its lists are read.

    Parameters
    ----------
    model, model_checkpointers, state_checkpointer
        As in `BaseServerCheckpointAndStateModule`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        model_checkpointers: ModelCheckpointers = None,
        state_checkpointer: PerRoundStateCheckpointer | None = None,
    ) -> None:
        exchanger = None if model is None else FullParameterExchangerWithPacking(self._packer_for(model))
        super().__init__(model, exchanger, model_checkpointers, state_checkpointer)

    def _packer_for(self, model: nn.Module) -> ParameterPacker[Any]:
        """Make the packer of the format.

        Raises
        ------
        NotImplementedError
            Unless a subclass says which; without a model nobody asks, so that the class can be made all the same.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say with which packer its lists are read")


class ScaffoldServerCheckpointAndStateModule(FormatServerCheckpointAndStateModule):
    """SCAFFOLD: weights, then a control variate for each parameter that is trained."""

    def _packer_for(self, model: nn.Module) -> ParameterPackerWithControlVariates:
        return ParameterPackerWithControlVariates(len(model.state_dict()))

    def _check_additional(self, additional: NDArrays, model: nn.Module) -> None:
        trained = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
        by_position(additional, trained, f"the trainable parameters of {type(model).__name__} (control variates)")


class AdaptiveConstraintServerCheckpointAndStateModule(FormatServerCheckpointAndStateModule):
    """Adaptive constraint: weights, then the weight of the constraint."""

    def _packer_for(self, model: nn.Module) -> ParameterPackerAdaptiveConstraint:
        return ParameterPackerAdaptiveConstraint()


class ClippingBitServerCheckpointAndStateModule(FormatServerCheckpointAndStateModule):
    """Adaptive clipping: weights, then the clipping bound."""

    def _packer_for(self, model: nn.Module) -> ParameterPackerWithClippingBit:
        return ParameterPackerWithClippingBit()
