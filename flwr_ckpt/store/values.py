"""JSON that loses nothing: plain values to JSON and back, equal by ``repr``.

``json`` writes bare ``NaN`` (not JSON), knows no bytes and no NumPy. What it cannot say is written as an
object whose key ``"$"`` names the kind; a mapping with a key that starts with ``"$"`` is tagged as well, so
that the two cannot be confused.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

_NUMPY_KINDS = "biufcSU"

_T = TypeVar("_T")
Json = Any  # what `json.loads` returns: None, bool, int, float, str, list, dict


def to_json(value: object) -> Json:
    """Encode a plain value.

    Parameters
    ----------
    value : object
        None, bool, int, float, str, bytes, a NumPy scalar or array of numbers, or lists, tuples and
        str-keyed mappings of them.

    Raises
    ------
    TypeError
        If the value holds anything else. Rich containers are the business of ``flwr_ckpt.state``.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        return _numpy_to_json(value)
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "v": base64.b64encode(value).decode("ascii")}
    if type(value) is list:
        return [to_json(item) for item in value]
    if type(value) is tuple:
        return {"$": "tuple", "v": [to_json(item) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if any(key.startswith("$") for key in value):
            return {"$": "dict", "v": [[key, to_json(item)] for key, item in value.items()]}
        return {key: to_json(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not a plain value: {value!r:.80}")


def from_json(value: Json) -> Any:
    """Decode what `to_json` wrote.

    Raises
    ------
    ValueError
        If an unknown tag is found.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value.get("$")
    if tag is None:
        return {key: from_json(item) for key, item in value.items()}
    if tag == "float":
        return float(value["v"])
    if tag == "bytes":
        return base64.b64decode(value["v"])
    if tag == "tuple":
        return tuple(from_json(item) for item in value["v"])
    if tag == "dict":
        return {key: from_json(item) for key, item in value["v"]}
    if tag == "numpy":
        dtype = np.dtype(value["dtype"]) if isinstance(value["dtype"], str) else None
        if dtype is None or dtype.kind not in _NUMPY_KINDS or dtype.itemsize == 0:
            raise ValueError(f"{value['dtype']!r:.40} is no type of a stored NumPy value")
        array = np.frombuffer(base64.b64decode(value["v"]), dtype)
        return array[0] if value["shape"] is None else array.reshape(value["shape"]).copy()
    raise ValueError(f"unknown tag {tag!r} in a stored value")


def _numpy_to_json(value: np.generic | np.ndarray) -> Json:
    if value.dtype.kind not in _NUMPY_KINDS or value.dtype.itemsize == 0:
        raise TypeError(f"a NumPy value of dtype {value.dtype} is not a plain value")
    shape = None if isinstance(value, np.generic) else list(value.shape)
    return {
        "$": "numpy",
        "dtype": value.dtype.str,
        "shape": shape,
        "v": base64.b64encode(value.tobytes()).decode("ascii"),
    }


def dumps(document: Json) -> bytes:
    """Serialise a document compactly; a bare NaN is refused instead of written."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()  # ASCII: a lone surrogate survives


def typed(value: Json, kind: type[_T]) -> _T:
    """Give a value that was read, if it is of exactly this type.

    Raises
    ------
    TypeError
        If it is not.
    """
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is expected")
    return value


def require(condition: bool, found: str) -> None:
    """Refuse what was read, unless a condition holds.

    Raises
    ------
    ValueError
        Saying what was found.
    """
    if not condition:
        raise ValueError(f"it states {found}")
