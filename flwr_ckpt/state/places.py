"""Where a value can be put: the attributes of an object, the items of a mapping, the inside of a list."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from .flower import RECORDS
from .objects import attributes, container_base, delete_attribute, set_attribute
from .paths import Path
from .tree import MISSING

KEEP: Any = object()  # leave what stands there

_IN_PLACE = (list, set, collections.deque, bytearray)


class Attributes:
    """The attributes of an object, past its class."""

    def __init__(self, obj: object) -> None:
        self._obj = obj
        self._now = attributes(obj)

    def get(self, name: str) -> Any:
        return self._now.get(name, MISSING)

    def set(self, name: str, value: object) -> None:
        set_attribute(self._obj, name, value)

    def delete(self, name: str) -> None:
        delete_attribute(self._obj, name)

    def path(self, parent: Path, name: str) -> Path:
        return parent.attribute(name)

    def arrange(self, order: Iterable[str]) -> None:
        """Attributes have no order anybody relies on."""


class Items:
    """The items of a dict or of a Flower record; of a user's own subclass by the methods of the built-in class."""

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping
        self._base: Any = container_base(mapping) or type(mapping)

    def get(self, key: Any) -> Any:
        if self._base.__contains__(self._mapping, key):
            return self._base.__getitem__(self._mapping, key)
        return MISSING

    def set(self, key: Any, value: object) -> None:
        self._base.__setitem__(self._mapping, key, value)

    def delete(self, key: Any) -> None:
        self._base.__delitem__(self._mapping, key)

    def path(self, parent: Path, key: Any) -> Path:
        return parent.item(key)

    def arrange(self, order: Iterable[Any]) -> None:
        """Bring the keys of `order` into that order, before all others."""
        there = list(self._base.__iter__(self._mapping))
        wanted = [key for key in order if self._base.__contains__(self._mapping, key)]
        first = set(wanted)
        wanted += [key for key in there if key not in first]
        if wanted != there:
            values = [self._base.__getitem__(self._mapping, key) for key in wanted]
            for key in there:
                self.delete(key)
            for key, value in zip(wanted, values, strict=True):
                self.set(key, value)


def mapping_kind(value: object) -> str | None:
    """The kind of node that `value` would be, if its items can be put back in place."""
    for record in RECORDS:
        if isinstance(value, record):
            return record.__name__
    kinds = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
    return type(value).__name__ if type(value) in kinds else None


def refill(live: Any, value: Any) -> bool:
    """Give `live` the content of `value`, if it is a built-in container that can take it."""
    if type(live) is not type(value) or type(live) not in _IN_PLACE:
        return False
    if isinstance(live, collections.deque) and live.maxlen != value.maxlen:
        return False
    if isinstance(live, (list, bytearray)):
        live[:] = value
    else:
        live.clear()
        live.update(value) if isinstance(live, set) else live.extend(value)
    return True


def is_like(live: Any, node: Any) -> bool:
    """Whether `live` is a sequence of the kind and length that `node` describes, in an order that means something."""
    if type(live) not in (list, tuple, collections.deque):
        return False
    return bool(node["$"] == type(live).__name__ and len(node["v"]) == len(live))


def with_items(live: Any, items: list[Any]) -> Any:
    """The sequence with other items: the same one, where it can be changed."""
    if isinstance(live, tuple):
        return tuple(items)
    for index, item in enumerate(items):
        live[index] = item
    return KEEP


def replace_content(live: Any, value: Any) -> None:
    """Give an object of a user's own list, set or deque class the content of `value`."""
    if isinstance(live, list):
        list.__setitem__(live, slice(None), value)
    elif isinstance(live, set):
        set.clear(live)
        set.update(live, value)
    else:
        collections.deque.clear(live)
        collections.deque.extend(live, value)


def is_same_leaf(live: Any, value: Any) -> bool:
    """Whether `live` is a tensor that an optimizer may hold on to, or an array that is a file, and `value` fits."""
    if type(live) is np.memmap:
        return live.flags.writeable and (live.shape, live.dtype) == (value.shape, value.dtype)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(live, torch.Tensor) or not (live.requires_grad and live.is_leaf):
        return False
    return value.requires_grad and (live.shape, live.dtype, type(live)) == (value.shape, value.dtype, type(value))


def copy_into(live: Any, value: Any) -> None:
    if isinstance(live, np.ndarray):
        np.copyto(live, value)
        return
    with sys.modules["torch"].no_grad():
        live.copy_(value)
