"""Values without anything below them: enums, functions, arrays, handles of the server, and what is not state."""

from __future__ import annotations

import ast
import enum
import functools
import itertools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ckpt.store.errors import CheckpointError

from .arrays import ArrayEncoder
from .classes import VALUE_BASES, OwnPackages, is_named_tuple, type_name
from .flower import RUNTIME_HANDLES, Array, ArrayRecord, Parameters
from .leaves import Node, base64_text, encode_leaf, encode_scalar
from .objects import attributes
from .paths import Path


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something that is not state; functions and classes have a name that tells them apart.

    Attributes
    ----------
    kind, name : str
    whole : str
        The path of the sequence that it lies in and that cannot be put back because of it; or empty.
    """

    kind: str
    name: str
    whole: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.name})" if self.name else self.kind


class SingleEncoder:
    """Makes nodes of single values, and notes by path those that are not state.

    Parameters
    ----------
    own : OwnPackages
    arrays : ArrayEncoder
    """

    def __init__(self, own: OwnPackages, arrays: ArrayEncoder) -> None:
        self._own = own
        self._arrays = arrays
        self.opaque: dict[str, Opaque] = {}
        self.needed: dict[str, Opaque] = {}
        self.unseen: dict[str, object] = {}

    def plain(self, value: object, path: Path) -> Node | None:
        """A plain value or a handle, neither of which anybody else could hold and change; ``None`` if it is none."""
        node = encode_leaf(value)
        if node is not None:
            return node
        if isinstance(value, enum.Enum):
            return self._enum(value) or self.not_state(value, path)
        if isinstance(value, RUNTIME_HANDLES):
            # As an attribute it is what Flower hands to each hook anew. In a container somebody keeps a list of them,
            # such as the clients of a round, which nobody makes again when that round is replayed.
            if path.in_state_dict or path.kind != "attribute":
                return self.not_state(value, path)
            return {"$": "runtime", "type": type_name(type(value))}
        if type(value) is bytes:
            return self._arrays.bytes_(value, path)
        return self._subclass(value)

    def data(self, value: object, path: Path) -> Node | None:
        """An array, tensor, record of arrays or byte array; ``None`` if it is none, or none that can be stored."""
        encode = next((encode for matches, encode in _DATA if matches(value)), None)
        return None if encode is None else encode(self._arrays, value, path)

    def function(self, value: object) -> Node | None:
        """A function or class found under its name in the strategy's modules; ``None`` if it is not."""
        name = self._own.function_name(value)
        return None if name is None else {"$": "function", "name": name}

    def not_state(self, value: object, path: Path) -> Node:
        """Anything else.

        Raises
        ------
        CheckpointError
            If a ``state_dict`` holds it, which is stored whole or not at all.
        """
        if path.in_state_dict:
            raise unstorable_state_dict(value, path)
        found = _opaque(value, name_of(value), path)
        self.opaque[str(path)] = found
        self.unseen[str(path)] = value
        return {"$": "opaque", "type": found.kind, "name": found.name}

    def needs_itself(self, value: object, name: str, path: Path) -> None:
        """Note what cannot be made again, yet can be filled where it is there already."""
        if path.in_state_dict:
            raise unstorable_state_dict(value, path)
        self.needed[str(path)] = _opaque(value, name, path)

    def key(self, key: Any) -> Node | None:
        """A key of a dict: any hashable plain value, and tuples of them; ``None`` if it is none (or None itself)."""
        scalar = encode_scalar(key)
        if scalar is not None:
            return scalar
        if type(key) is bytes:
            return {"$": "bytes", "v": base64_text(key)}
        if type(key) in (tuple, frozenset):
            parts = [self.key(part) for part in key]
            if any(part is None and item is not None for part, item in zip(parts, key, strict=True)):
                return None
            return {"$": type(key).__name__, "v": parts}
        if isinstance(key, enum.Enum):
            return self._enum(key)
        return encode_leaf(key) or self._subclass(key) or self._record_key(key)

    def _record_key(self, key: Any) -> Node | None:
        """A named tuple, or a frozen dataclass, of plain values: equal by its fields."""
        cls = type(key)
        if is_named_tuple(cls) and self._own.finds_value_class(cls):
            kind, fields = "namedtuple", dict(zip(cls._fields, tuple.__iter__(key), strict=True))
        elif self._own.is_key_class(cls):
            kind, fields = "object", attributes(key)
        else:
            return None
        parts = {name: self.key(value) for name, value in fields.items()}
        if any(part is None and fields[name] is not None for name, part in parts.items()):
            return None
        return {"$": kind, "type": type_name(cls), "v": parts if kind == "object" else list(parts.values())}

    def _subclass(self, value: Any) -> Node | None:
        """A number or string of a class of the user's that holds nothing else."""
        cls = type(value)
        base: Any = next((base for base in VALUE_BASES if isinstance(value, base)), None)
        if base is None or attributes(value) or not self._own.finds_value_class(cls):
            return None
        plain: Any = base.__new__(base, value) if base is not str else str.__str__(value)
        encoded = {"$": "bytes", "v": base64_text(plain)} if base is bytes else encode_scalar(plain)
        return {"$": "subclass", "type": type_name(cls), "v": encoded}

    def _enum(self, value: enum.Enum) -> Node | None:
        cls = type(value)
        if not self._own.finds_value_class(cls):
            return None
        if value.name is not None and cls.__members__.get(value.name) is value:
            return {"$": "enum", "type": type_name(cls), "name": value.name}
        return {"$": "enum", "type": type_name(cls), "flags": int(value.value)}


def unstorable_state_dict(value: object, path: Path) -> CheckpointError:
    """The error for what makes a whole ``state_dict`` unstorable."""
    what = f"{type_name(type(value))} {name_of(value)}".strip()
    return CheckpointError(
        f"{path}: a {what}, which cannot be stored. A state_dict may hold plain values, arrays, tensors and the "
        "containers of the standard library; leave the entry out of it, or name the object in exclude="
    )


def name_of(value: object) -> str:
    """Tells functions and classes apart that are not found by name; other objects only by their type."""
    if isinstance(value, functools.partial):
        given = [repr(item) for item in value.args if _is_plain(item)]
        given += [f"{name}={item!r}" for name, item in value.keywords.items() if _is_plain(item)]
        return (
            f"partial of {name_of(value.func)} with {', '.join(given)}"
            if given
            else f"partial of {name_of(value.func)}"
        )
    if isinstance(value, types.ModuleType):
        return value.__name__
    qualname = getattr(value, "__qualname__", None) if callable(value) else None
    return f"{getattr(value, '__module__', '')}:{qualname}" if isinstance(qualname, str) else ""


def _is_plain(value: object) -> bool:
    """What looks the same in every process."""
    return value is None or encode_scalar(value) is not None


def _opaque(value: object, name: str, path: Path) -> Opaque:
    whole = path.whole()
    return Opaque(type_name(type(value)), name, "" if whole is None else str(whole))


def _count(value: object) -> Node | None:
    """What comes next shows in the text, without being taken; ``None`` where that is no plain number."""
    start, _, step = repr(value)[len("count(") : -1].partition(", ")
    try:
        parts = [ast.literal_eval(part) for part in (start, step or "1")]
    except (SyntaxError, ValueError):
        return None
    return {"$": "count", "v": [encode_scalar(part) for part in parts]}


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_torch_size(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and type(value) is torch.Size


_DATA: tuple[tuple[Callable[[object], bool], Callable[[ArrayEncoder, Any, Path], Node | None]], ...] = (
    (lambda value: isinstance(value, np.ndarray), ArrayEncoder.ndarray),
    (lambda value: type(value) is bytearray, ArrayEncoder.bytes_),
    (lambda value: isinstance(value, Parameters), ArrayEncoder.parameters),
    (lambda value: isinstance(value, ArrayRecord), ArrayEncoder.array_record),
    (lambda value: isinstance(value, Array), ArrayEncoder.array),
    (_is_tensor, ArrayEncoder.tensor),
    (lambda value: type(value) is itertools.count, lambda _, value, __: _count(value)),
    (_is_torch_size, lambda _, value, __: {"$": "torch.Size", "v": [int(part) for part in value]}),
)
