"""Send a part of the model, chosen anew each time."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flwr.common import Config, NDArray, NDArrays

from .model_arrays import by_position, check_names, model_shapes, put_arrays
from .parameter_exchanger_base import ParameterExchanger
from .parameter_packer import ParameterPackerByName

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


def named_arrays(packer: ParameterPackerByName[Any], parameters: NDArrays, model: nn.Module) -> dict[str, NDArray]:
    """Say which entries of a model a list brings: those it names, or all of them if it is a plain one.

    The plain list of the whole model is what is exchanged before the first round, when nothing has been chosen yet.

    Raises
    ------
    ValueError
        If a name, a shape or the number of arrays does not fit the model.
    """
    owner = type(model).__name__
    if not packer.is_packed(parameters):
        return by_position(parameters, model_shapes(model), owner)
    arrays = packer.arrays_by_name(parameters)
    check_names(arrays, model_shapes(model), owner)
    return arrays


class PartialParameterExchanger(ParameterExchanger, Generic[T]):
    """Exchange what `select_parameters` chooses, by name.

    Parameters
    ----------
    parameter_packer : ParameterPackerByName
        How the chosen part is written down.
    """

    def __init__(self, parameter_packer: ParameterPackerByName[T]) -> None:
        self.parameter_packer = parameter_packer

    @abstractmethod
    def select_parameters(self, model: nn.Module, initial_model: nn.Module | None = None) -> tuple[NDArrays, T]:
        """Choose what is sent: the arrays, and what the packer needs beside them."""

    def pack_parameters(self, model_weights: NDArrays, additional_parameters: T) -> NDArrays:
        """Put chosen weights and what goes with them into one list."""
        return self.parameter_packer.pack_parameters(model_weights, additional_parameters)

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, T]:
        """Take chosen weights and what goes with them out of one list.

        Raises
        ------
        ValueError
            If the list is not one of the packer's.
        """
        return self.parameter_packer.unpack_parameters(packed_parameters)

    def push_parameters(
        self, model: nn.Module, initial_model: nn.Module | None = None, config: Config | None = None
    ) -> NDArrays:
        """Choose and pack; `config` is not used."""
        return self.pack_parameters(*self.select_parameters(model, initial_model))

    def pull_parameters(self, parameters: NDArrays, model: nn.Module, config: Config | None = None) -> None:
        """Put what a list names into a model by name, the rest of which stays; or a whole model's plain list.

        Raises
        ------
        ValueError
            If a name, a shape or the number of arrays does not fit the model, which is then as it was.
        """
        put_arrays(model, named_arrays(self.parameter_packer, parameters, model))
