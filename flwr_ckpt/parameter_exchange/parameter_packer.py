"""How a list of arrays holds more than the weights: one class for each packed format.

A packer that meets a list which is not its own raises `ValueError` and says what it found. None of them needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from flwr.common import NDArray, NDArrays

from .model_arrays import to_array

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SparseParts = tuple[NDArrays, NDArrays, list[str]]


class ParameterPacker(ABC, Generic[T]):
    """A packed format: weights and something of type `T` in one list."""

    @abstractmethod
    def pack_parameters(self, model_weights: NDArrays, additional_parameters: T) -> NDArrays:
        """Put weights and what goes with them into one list."""

    @abstractmethod
    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, T]:
        """Take weights and what goes with them out of one list.

        Raises
        ------
        ValueError
            If the list is not of this format.
        """


class ParameterPackerWithControlVariates(ParameterPacker[NDArrays]):
    """SCAFFOLD: the weights, then the control variates.

    There are fewer variates than weights where not every entry of the ``state_dict`` is trained (BatchNorm, frozen
    layers), so the list is split by the number of weights alone.

    Parameters
    ----------
    size_of_model_params : int
        Number of weight arrays: the entries of the model's ``state_dict``.
    """

    def __init__(self, size_of_model_params: int) -> None:
        self.size_of_model_params = size_of_model_params

    def pack_parameters(self, model_weights: NDArrays, additional_parameters: NDArrays) -> NDArrays:
        if len(model_weights) != self.size_of_model_params:
            raise ValueError(
                f"{len(model_weights)} weight arrays were given to a packer of {self.size_of_model_params}; "
                "unpacking would split the list in another place"
            )
        return [*model_weights, *additional_parameters]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, NDArrays]:
        size = self.size_of_model_params
        if len(packed_parameters) < size:
            raise ValueError(
                f"{len(packed_parameters)} arrays were given; {size} weights and the control variates after them were "
                "expected"
            )
        return packed_parameters[:size], packed_parameters[size:]


class ParameterPackerWithClippingBit(ParameterPacker[float]):
    """Adaptive clipping: the weights, then the clipping bound (from a client, the clipping bit)."""

    def pack_parameters(self, model_weights: NDArrays, additional_parameters: float) -> NDArrays:
        return [*model_weights, _number(additional_parameters)]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, float]:
        return _split_number(packed_parameters, "the clipping bound")


class ParameterPackerAdaptiveConstraint(ParameterPacker[float]):
    """Adaptive constraint: the weights, then the constraint's weight (from a client, its training loss)."""

    def pack_parameters(self, model_weights: NDArrays, extra_adaptive_variable: float) -> NDArrays:
        return [*model_weights, _number(extra_adaptive_variable)]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, float]:
        return _split_number(packed_parameters, "the weight of the adaptive constraint")


def _number(value: float) -> NDArray:
    return np.array(value, dtype=np.float64)


def _split_number(packed: NDArrays, what: str) -> tuple[NDArrays, float]:
    last = np.asarray(packed[-1]) if len(packed) else np.empty(0)
    if last.size != 1 or last.dtype.kind not in "biuf":
        raise ValueError(
            f"the last of {len(packed)} arrays has shape {last.shape} and dtype {last.dtype}; one number, {what}, was "
            "expected there"
        )
    return packed[:-1], float(last.item())


class ParameterPackerByName(ParameterPacker[T]):
    """A format whose lists name the entries they bring, in an array of strings at their end."""

    @staticmethod
    def is_packed(parameters: Sequence[NDArray]) -> bool:
        """Tell a packed list from the plain one of a whole model, by its last array and never by its length.

        An array of no names has no strings in it: it is what NumPy makes of an empty list, alone.
        """
        if not parameters:
            return False
        last = np.asarray(parameters[-1])
        return last.dtype.kind == "U" or (len(parameters) == 1 and last.shape == (0,))

    @abstractmethod
    def arrays_by_name(self, packed_parameters: NDArrays) -> dict[str, NDArray]:
        """Unpack into whole arrays, each under the name of its entry.

        Raises
        ------
        ValueError
            If the list is not of this format.
        """


class ParameterPackerWithLayerNames(ParameterPackerByName[list[str]]):
    """Some layers, then an array of their names."""

    def pack_parameters(self, model_weights: NDArrays, weights_names: list[str]) -> NDArrays:
        _check_counts({"layers": len(model_weights), "names": len(weights_names)})
        return [*model_weights, _pack_names(weights_names)]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, list[str]]:
        names = _unpack_names(packed_parameters)
        layers = packed_parameters[:-1]
        _check_counts({"layers": len(layers), "names": len(names)})
        return layers, names

    def arrays_by_name(self, packed_parameters: NDArrays) -> dict[str, NDArray]:
        layers, names = self.unpack_parameters(packed_parameters)
        return dict(zip(names, layers, strict=True))


class SparseCooParameterPacker(ParameterPackerByName[SparseParts]):
    """Some elements of some tensors in coordinate form: all values, all indices, all shapes, then the names."""

    def pack_parameters(self, model_parameters: NDArrays, additional_parameters: SparseParts) -> NDArrays:
        indices, shapes, names = additional_parameters
        _check_sparse(model_parameters, indices, shapes, names)
        return [*model_parameters, *indices, *shapes, _pack_names(names)]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, SparseParts]:
        names = _unpack_names(packed_parameters)
        k = len(names)
        if len(packed_parameters) != 3 * k + 1:
            raise ValueError(
                f"{len(packed_parameters)} arrays were given with {k} names; values, indices and shape of each and the "
                f"names make {3 * k + 1}"
            )
        values, indices, shapes = (packed_parameters[i * k : (i + 1) * k] for i in range(3))
        _check_sparse(values, indices, shapes, names)
        return values, (indices, shapes, names)

    def arrays_by_name(self, packed_parameters: NDArrays) -> dict[str, NDArray]:
        """Unpack into dense arrays; elements that are not listed are 0."""
        values, (indices, shapes, names) = self.unpack_parameters(packed_parameters)
        return {name: _dense(name, *parts) for name, *parts in zip(names, values, indices, shapes, strict=True)}

    @staticmethod
    def extract_coo_info_from_dense(x: Tensor | NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Take the elements that are not 0 out of a dense tensor.

        Returns
        -------
        values : ndarray, shape (nnz,)
        indices : ndarray of int64, shape (nnz, ndim)
        shape : ndarray of int64, shape (ndim,)
        """
        dense = to_array(x)
        return dense[np.nonzero(dense)], np.argwhere(dense), np.array(dense.shape, dtype=np.int64)


def _check_counts(counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{count} {what}" for what, count in counts.items())
        raise ValueError(f"{found} were given; there must be as many of each")


def _check_unique(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named more than once: {', '.join(twice)}")


def _pack_names(names: list[str]) -> NDArray:
    _check_unique(names)
    return np.array(names)


def _unpack_names(packed: NDArrays) -> list[str]:
    if not ParameterPackerByName.is_packed(packed) or np.ndim(packed[-1]) != 1:
        found = f"shape {np.shape(packed[-1])} and dtype {np.asarray(packed[-1]).dtype}" if packed else "nothing"
        raise ValueError(f"the last of {len(packed)} arrays must hold names, one string for each; found {found}")
    names = [str(name) for name in packed[-1]]
    _check_unique(names)
    return names


def _check_sparse(values: NDArrays, indices: NDArrays, shapes: NDArrays, names: list[str]) -> None:
    _check_counts({"values": len(values), "indices": len(indices), "shapes": len(shapes), "names": len(names)})
    for name, value, index, shape in zip(names, values, indices, shapes, strict=True):
        whole_numbers = index.dtype.kind in "iu" and shape.dtype.kind in "iu"
        one_dimensional = value.ndim == 1 and shape.ndim == 1 and shape.size > 0
        if not (whole_numbers and one_dimensional and index.shape == (value.size, shape.size)):
            raise ValueError(
                f"{name}: values of shape {value.shape}, indices of shape {index.shape} and dtype {index.dtype}, and a "
                f"tensor shape of shape {shape.shape} and dtype {shape.dtype} do not belong together; expected (nnz,), "
                "whole numbers of (nnz, ndim), and whole numbers of (ndim,), ndim at least 1"
            )


def _dense(name: str, values: NDArray, indices: NDArray, shape: NDArray) -> NDArray:
    dense = np.zeros(shape, dtype=values.dtype)
    coordinates = tuple(indices.T)
    if indices.size and (indices.min() < 0 or (indices.max(axis=0) >= shape).any()):
        raise ValueError(f"{name}: an index lies outside the tensor's shape {tuple(shape.tolist())}")
    if np.unique(np.ravel_multi_index(coordinates, dense.shape)).size != values.size:
        raise ValueError(f"{name}: an element is listed more than once")
    dense[coordinates] = values
    return dense
