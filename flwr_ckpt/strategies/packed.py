"""What clients return in packed lists, and averages over them, in plain NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from flwr.common import NDArray, NDArrays

from ..parameter_exchange import ParameterPacker, ParameterPackerByName

T = TypeVar("T")


@dataclass(frozen=True)
class Update:
    """What one client sent back after training.

    Attributes
    ----------
    sender : str
        Who it was, for messages.
    arrays : list of ndarray
        Its packed list.
    num_examples : float
        How many examples it trained on.
    """

    sender: str
    arrays: NDArrays
    num_examples: float


def check_shapes(sender: str, found: NDArrays, expected: NDArrays) -> None:
    """Check that a list holds as many arrays as it should, each of its shape.

    Raises
    ------
    ValueError
        If it does not; both sides are shown.
    """
    shapes, wanted = [array.shape for array in found], [array.shape for array in expected]
    if shapes == wanted:
        return
    if len(shapes) == len(wanted):
        differ = [place for place, shape in enumerate(shapes) if shape != wanted[place]]
        shapes, wanted = [shapes[place] for place in differ], [wanted[place] for place in differ]
        where = f" in places {differ}"
    else:
        where = f", {len(shapes)} of them, and not {len(wanted)}"
    raise ValueError(
        f"{sender} returned arrays of the shapes {shapes}{where}; expected {wanted}. Client and strategy have to pack "
        "alike"
    )


def unpack_beside(update: Update, packer: ParameterPacker[T], weights: NDArrays) -> tuple[NDArrays, T]:
    """Unpack arrays shaped like the model's weights, and what comes with them.

    Raises
    ------
    ValueError
        If the list is of another format, or the arrays have other shapes.
    """
    try:
        arrays, beside = packer.unpack_parameters(update.arrays)
    except ValueError as error:
        raise ValueError(f"{update.sender} returned another list than expected: {error}") from error
    check_shapes(update.sender, arrays, weights)
    return arrays, beside


def unpack_by_name(updates: Sequence[Update], packer: ParameterPackerByName[T]) -> list[dict[str, NDArray]]:
    """Unpack lists that name what they hold.

    Raises
    ------
    ValueError
        If a list is of another format, or two clients disagree about the shape of a tensor.
    """
    lists = []
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for update in updates:
        try:
            tensors = packer.arrays_by_name(update.arrays)
        except ValueError as error:
            raise ValueError(f"{update.sender} returned another list than expected: {error}") from error
        for name, tensor in tensors.items():
            sender, shape = first.setdefault(name, (update.sender, tensor.shape))
            if tensor.shape != shape:
                raise ValueError(
                    f"{update.sender} returned {name!r} with shape {tensor.shape}, and {sender} with {shape}; all "
                    "clients have to train one architecture"
                )
        lists.append(tensors)
    return lists


def weights_of(updates: Sequence[Update], weighted: bool) -> list[float]:
    """How much each update counts in an average: by its number of examples, or all the same."""
    return [float(update.num_examples) if weighted else 1.0 for update in updates]


def average(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Average numbers, or arrays of one shape.

    Floating-point types stay as they are found; counters, which are whole numbers, become float64.

    Raises
    ------
    ValueError
        If the weights sum up to nothing.
    """
    total = sum(weights)
    if not total > 0:
        raise ValueError(f"the updates weigh {list(weights)}, expected a sum above 0; do clients report num-examples?")
    result = reduce(np.add, [value * weight for value, weight in zip(values, weights, strict=True)]) / total
    first = np.asarray(values[0])  # NumPy 1 makes a float64 of a float32 without dimensions
    return np.asarray(result, first.dtype if first.dtype.kind == "f" else None)


def average_lists(lists: Sequence[NDArrays], weights: Sequence[float]) -> NDArrays:
    """Average lists of arrays, place by place (see `average`)."""
    return [average(arrays, weights) for arrays in zip(*lists, strict=True)]


def average_by_name(lists: Sequence[Mapping[str, NDArray]], weights: Sequence[float]) -> dict[str, NDArray]:
    """Average each tensor over the clients that sent it, in order of first appearance (see `average`)."""
    averages = {}
    for name in dict.fromkeys(name for tensors in lists for name in tensors):
        sent = [(tensors[name], weight) for tensors, weight in zip(lists, weights, strict=True) if name in tensors]
        averages[name] = average([tensor for tensor, _ in sent], [weight for _, weight in sent])
    return averages
