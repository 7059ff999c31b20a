"""Send the whole model and something beside it."""

from __future__ import annotations

from typing import Generic, TypeVar

from flwr.common import NDArrays

from .full_exchanger import FullParameterExchanger
from .parameter_packer import ParameterPacker

T = TypeVar("T")


class FullParameterExchangerWithPacking(FullParameterExchanger, Generic[T]):
    """Exchange the whole model; a packer says how what goes with it is put into the same list.

    Pushing and pulling stay those of the whole model: unpack before pulling, pack after pushing.

    Parameters
    ----------
    parameter_packer : ParameterPacker
        Packs and unpacks.
    """

    def __init__(self, parameter_packer: ParameterPacker[T]) -> None:
        self.parameter_packer = parameter_packer

    def pack_parameters(self, model_weights: NDArrays, additional_parameters: T) -> NDArrays:
        """Put weights and what goes with them into one list."""
        return self.parameter_packer.pack_parameters(model_weights, additional_parameters)

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, T]:
        """Take weights and what goes with them out of one list.

        Raises
        ------
        ValueError
            If the list is not one of the packer's.
        """
        return self.parameter_packer.unpack_parameters(packed_parameters)
