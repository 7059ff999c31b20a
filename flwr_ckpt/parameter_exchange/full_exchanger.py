"""Send the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.common import Config, NDArrays

from .model_arrays import by_position, model_arrays, model_shapes, put_arrays
from .parameter_exchanger_base import ParameterExchanger

if TYPE_CHECKING:
    from torch import nn


class FullParameterExchanger(ParameterExchanger):
    """Exchange every entry of the ``state_dict``, in its order."""

    def array_names(self, model: nn.Module) -> list[str]:
        """Name what `push_parameters` sends, in its order."""
        return list(model.state_dict())

    def push_parameters(
        self, model: nn.Module, initial_model: nn.Module | None = None, config: Config | None = None
    ) -> NDArrays:
        """Copy all entries of the ``state_dict``, in its order; `initial_model` and `config` are not used."""
        return list(model_arrays(model).values())

    def pull_parameters(self, parameters: NDArrays, model: nn.Module, config: Config | None = None) -> None:
        """Put a whole model's arrays into a model.

        Raises
        ------
        ValueError
            If their number or a shape differs from the model's; the model is then as it was.
        """
        put_arrays(model, by_position(parameters, model_shapes(model), type(model).__name__))
