"""The entries of a model's ``state_dict`` as arrays: read out of it, and put back only if every one of them fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.common import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]

_MOST_LINES = 8  # of a comparison: a model has hundreds of entries, and all after a missing one differ
_NUMBERS = "biufc"  # kinds of dtype: boolean, integers, floating point, complex


def to_array(tensor: Tensor | NDArray) -> NDArray:
    """Copy a tensor (or an array): what is sent must not change when the model is trained on."""
    if isinstance(tensor, (np.ndarray, np.generic)):  # arithmetic makes numbers of arrays without a dimension
        return np.array(tensor)
    here = tensor.detach().cpu()
    try:
        return np.array(here.numpy())
    except TypeError:  # bfloat16 and float8, which NumPy has not; float32 holds each of their values
        return np.array(here.float().numpy())


def model_arrays(model: nn.Module) -> dict[str, NDArray]:
    """Copy all entries of a model's ``state_dict``, in its order."""
    return {name: to_array(tensor) for name, tensor in model.state_dict().items()}


def model_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the entries of a model's ``state_dict``, in its order."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def by_position(arrays: Sequence[NDArray], expected: Shapes, owner: str) -> dict[str, NDArray]:
    """Name arrays that come in a known order.

    Parameters
    ----------
    arrays : sequence of ndarray
        What was received.
    expected : Mapping[str, tuple of int]
        The names in the order in which they were sent, with the shape that each must have.
    owner : str
        Whose entries they are, for the error.

    Raises
    ------
    ValueError
        If their number or a shape differs; it shows both sides.
    """
    given = [np.shape(array) for array in arrays]
    if given != list(expected.values()):
        left = [str(shape) for shape in given]
        right = [f"{name} {shape}" for name, shape in expected.items()]
        raise ValueError(
            f"{len(given)} arrays were given, and {owner} has {len(expected)} entries. "
            f"What differs (given | {owner}):\n{_differences(left, right, [str(s) for s in expected.values()])}"
        )
    return dict(zip(expected, arrays, strict=True))


def check_names(arrays: Mapping[str, Any], expected: Shapes, owner: str, *, whole: bool = False) -> None:
    """Check that arrays which bring their names fit.

    Parameters
    ----------
    arrays : Mapping[str, array or tensor]
        What was received.
    expected : Mapping[str, tuple of int]
        The names there are, with their shapes.
    owner : str
        Whose entries they are, for the error.
    whole : bool
        Whether every name that there is has to be among them.

    Raises
    ------
    ValueError
        If a name is unknown (or missing), or a shape differs; it shows both sides.
    """
    given = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    wrong = [name for name in given if expected.get(name) != given[name]]
    missing = [name for name in expected if name not in given] if whole else []
    if not wrong and not missing:
        return
    lines = [f"  {name} {given[name]} | {_entry(name, expected)}" for name in wrong]
    lines += [f"  nothing | {name} {expected[name]}" for name in missing]
    unknown = any(name not in expected for name in wrong)
    names = f"\n{owner} has: {_some(list(expected))}" if unknown else ""
    raise ValueError(
        f"{len(wrong) + len(missing)} of the arrays given do not fit {owner} (given | {owner}):\n"
        f"{_shorten(lines)}{names}"
    )


def put_arrays(model: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Put arrays (or tensors) into the entries of a model that they name, in the model's dtypes; the others stay.

    Names and shapes have been checked by whoever knows how the arrays came (`by_position`, `check_names`).

    Raises
    ------
    ValueError
        If one of them does not hold numbers; the model is then as it was.
    """
    tensors = {name: _to_tensor(name, array) for name, array in arrays.items()}
    model.load_state_dict({**model.state_dict(), **tensors}, strict=True)


def _to_tensor(name: str, array: Any) -> Tensor:
    import torch  # only here: what packs and unpacks lists on a server needs no torch

    if isinstance(array, torch.Tensor):
        return array
    plain = np.asarray(array)
    if plain.dtype.kind not in _NUMBERS:
        raise ValueError(f"{name}: an array of dtype {plain.dtype} was given; weights are numbers")
    # torch takes native byte order only, and warns of arrays it could not write to
    return torch.from_numpy(np.require(plain, plain.dtype.newbyteorder("="), ["C", "W"]))


def _entry(name: str, expected: Shapes) -> str:
    return f"{name} {expected[name]}" if name in expected else "no such entry"


def _differences(left: Sequence[str], right: Sequence[str], shapes: Sequence[str]) -> str:
    rows = zip_longest(left, right, shapes)
    lines = [f"  {i}: {a or 'nothing'} | {b or 'nothing'}" for i, (a, b, shape) in enumerate(rows) if a != shape]
    return _shorten(lines)


def _shorten(lines: Sequence[str]) -> str:
    more = [f"  … and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "\n".join([*lines[:_MOST_LINES], *more])


def _some(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _MOST_LINES else ""
    return ", ".join(names[:_MOST_LINES]) + more
