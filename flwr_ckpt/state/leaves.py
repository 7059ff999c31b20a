"""Single plain values as nodes of the tree, and back: equal by type and by ``repr``.

None, booleans, strings and ordinary numbers stand for themselves; everything else is ``{"$": kind, ...}``.
"""

from __future__ import annotations

import array
import base64
import datetime
import decimal
import fractions
import math
import sys
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from flwr_ckpt.store.format.array_types import described_type, without_objects
from flwr_ckpt.store.values import Json

Node = Json

_LARGE_INT_BITS = 4096  # Python refuses to print, and JSON parsers to read, integers of several thousand digits


def base64_text(data: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(data).decode("ascii")


def base64_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def encode_scalar(value: object) -> Node | None:
    """Encode a value of exactly one of the types that JSON knows; ``None`` for any other (and for None itself)."""
    kind = type(value)
    if kind is bool:
        return value
    if kind is int:
        assert isinstance(value, int)
        return value if value.bit_length() < _LARGE_INT_BITS else {"$": "int", "v": hex(value)}
    if kind is float:
        assert isinstance(value, float)
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if kind is str:
        assert isinstance(value, str)
        return value if is_text(value) else {"$": "str", "v": base64_text(value.encode("utf-8", "surrogatepass"))}
    return None


def is_text(value: str) -> bool:
    """Whether UTF-8 can say it; a lone surrogate it cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_leaf(value: object) -> Node | None:
    """Encode any other single plain value; ``None`` if it is none."""
    if isinstance(value, np.generic):
        return _encode_numpy_scalar(value)
    encode = _ENCODERS.get(type(value))
    if encode is not None:
        return encode(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, (torch.dtype, torch.device)):
        return {"$": f"torch.{type(value).__name__}", "v": str(value).removeprefix("torch.")}
    return None


def decode_leaf(node: dict[str, Any]) -> Any:
    """Decode what `encode_scalar` and `encode_leaf` tagged.

    Raises
    ------
    ValueError
        If the tag is unknown or the value does not fit it.
    """
    kind = node["$"]
    decode = _DECODERS.get(kind)
    if decode is None:
        raise ValueError(f"unknown kind {kind!r} in a stored state tree; known are {', '.join(sorted(_DECODERS))}")
    return decode(node)


def is_leaf_kind(kind: str) -> bool:
    return kind in _DECODERS


def encode_dtype(dtype: np.dtype[Any]) -> Json | None:
    """What ``.npy`` headers say, as JSON; a type that another package registered by its name.

    ``None`` for what has no such description: objects, and fields that overlap.
    """
    if dtype.hasobject:
        return None
    if dtype.kind == "V" and dtype.names is None and dtype.type is not np.void:
        return {"registered": dtype.name}
    try:
        return np.lib.format.dtype_to_descr(dtype)
    except ValueError:
        return None


def decode_dtype(description: Json) -> np.dtype[Any]:
    if isinstance(description, dict):
        name = description["registered"]
        try:
            return without_objects(np.dtype(name))
        except TypeError:
            raise ValueError(
                f"the stored state holds an array of type {name!r}, which NumPy does not know here; "
                "import the package that registers it (such as ml_dtypes) before the strategy is made"
            ) from None
    return described_type(description)


def _encode_numpy_scalar(value: np.generic) -> Node | None:
    dtype = encode_dtype(value.dtype)
    return None if dtype is None else {"$": "numpy", "dtype": dtype, "v": base64_text(value.tobytes())}


def _decode_numpy_scalar(node: dict[str, Any]) -> Any:
    data = base64_bytes(node["v"])
    dtype = decode_dtype(node["dtype"])
    if dtype.itemsize == 0:
        return np.zeros((), dtype)[()]
    return np.frombuffer(data, dtype)[0]


def _encode_complex(value: complex) -> Node:
    return {"$": "complex", "real": encode_scalar(value.real), "imag": encode_scalar(value.imag)}


def _plain(node: Node) -> Any:
    return decode_leaf(node) if isinstance(node, dict) else node


def _encode_timezone(value: datetime.timezone) -> Node:
    return {"$": "timezone", "offset": _span(value.utcoffset(None)), "name": value.tzname(None)}


def _decode_timezone(node: dict[str, Any]) -> datetime.timezone:
    offset = datetime.timedelta(*node["offset"])
    plain = datetime.timezone(offset)
    return plain if plain.tzname(None) == node["name"] else datetime.timezone(offset, node["name"])


def _span(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_moment(value: datetime.datetime | datetime.time) -> Node | None:
    """ISO without zone, and the zone beside it; zones that are more than an offset are not plain values."""
    zone = value.tzinfo
    if zone is not None and type(zone) is not datetime.timezone:
        return None
    node: dict[str, Any] = {"$": type(value).__name__, "v": value.replace(tzinfo=None, fold=0).isoformat()}
    if value.fold:
        node["fold"] = 1
    if isinstance(zone, datetime.timezone):
        node["zone"] = _encode_timezone(zone)
    return node


def _decode_moment(kind: Any) -> Callable[[dict[str, Any]], Any]:
    def decode(node: dict[str, Any]) -> Any:
        zone = _decode_timezone(node["zone"]) if "zone" in node else None
        return kind.fromisoformat(node["v"]).replace(tzinfo=zone, fold=node.get("fold", 0))

    return decode


def _encode_array(value: array.array[Any]) -> Node | None:
    # "u" elements have a width of their own on every platform
    return None if value.typecode == "u" else {"$": "array", "code": value.typecode, "v": base64_text(value.tobytes())}


def _encode_range(value: range) -> Node:
    return {"$": "range", "v": [value.start, value.stop, value.step]}


_ENCODERS: dict[type, Callable[[Any], Node | None]] = {
    complex: _encode_complex,
    range: _encode_range,
    decimal.Decimal: lambda value: {"$": "Decimal", "v": str(value)},
    fractions.Fraction: lambda value: {"$": "Fraction", "v": [hex(value.numerator), hex(value.denominator)]},
    uuid.UUID: lambda value: {"$": "UUID", "v": str(value)},
    datetime.datetime: _encode_moment,
    datetime.time: _encode_moment,
    datetime.date: lambda value: {"$": "date", "v": value.isoformat()},
    datetime.timedelta: lambda value: {"$": "timedelta", "v": _span(value)},
    datetime.timezone: _encode_timezone,
    array.array: _encode_array,
    type(Ellipsis): lambda _: {"$": "Ellipsis"},
    type(NotImplemented): lambda _: {"$": "NotImplemented"},
}

_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "int": lambda node: int(node["v"], 16),
    "float": lambda node: float(node["v"]),
    "str": lambda node: base64_bytes(node["v"]).decode("utf-8", "surrogatepass"),
    "complex": lambda node: complex(_plain(node["real"]), _plain(node["imag"])),
    "range": lambda node: range(*node["v"]),
    "Decimal": lambda node: decimal.Decimal(node["v"]),
    "Fraction": lambda node: fractions.Fraction(*(int(part, 16) for part in node["v"])),
    "UUID": lambda node: uuid.UUID(node["v"]),
    "datetime": _decode_moment(datetime.datetime),
    "time": _decode_moment(datetime.time),
    "date": lambda node: datetime.date.fromisoformat(node["v"]),
    "timedelta": lambda node: datetime.timedelta(*node["v"]),
    "timezone": _decode_timezone,
    "array": lambda node: array.array(node["code"], base64_bytes(node["v"])),
    "Ellipsis": lambda _: ...,
    "NotImplemented": lambda _: NotImplemented,
    "numpy": _decode_numpy_scalar,
    "torch.dtype": lambda node: _torch_dtype(node["v"]),
    "torch.device": lambda node: _torch().device(node["v"]),
}


def _torch() -> Any:
    import importlib

    return importlib.import_module("torch")


def _torch_dtype(name: str) -> Any:
    torch = _torch()
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"this torch has no dtype {name!r}")
    return found
