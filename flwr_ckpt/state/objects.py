"""Attributes as they lie in an object, past whatever its class does to attribute access.

A delegating ``__getattr__``, a property of the same name or a strict ``__setattr__`` is the user's business; state is
read from, and written to, the instance ``__dict__`` and the slots themselves.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Iterator
from typing import Any

RESERVED = "_flwr_ckpt"  # where the checkpointing strategy keeps what is its own

_MISSING = object()
_HEAP_TYPE = 1 << 9  # set for every class that a class statement made


def dictionary(obj: object) -> dict[str, Any] | None:
    """The ``__dict__`` of the instance itself, if it has one."""
    try:
        found = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def _slots(cls: type) -> Iterator[tuple[str, types.MemberDescriptorType]]:
    for base in cls.__mro__:
        if not base.__dict__.get("__slots__"):
            continue
        for name, member in base.__dict__.items():
            if isinstance(member, types.MemberDescriptorType):
                yield name, member


def has_slots(cls: type) -> bool:
    """Whether instances have attributes beside their ``__dict__``."""
    return next(_slots(cls), None) is not None


def attributes(obj: object) -> dict[str, Any]:
    """All attributes of the instance itself, those in slots too."""
    found: dict[str, Any] = {}
    for name, member in _slots(type(obj)):
        value = _slot_value(member, obj)
        if value is not _MISSING:
            found.setdefault(name, value)
    for name, value in (dictionary(obj) or {}).items():
        if type(name) is str and name != RESERVED:
            found[name] = value
    return found


def _slot_value(member: types.MemberDescriptorType, obj: object) -> Any:
    try:
        return member.__get__(obj, type(obj))
    except AttributeError:
        return _MISSING


def set_attribute(obj: object, name: str, value: object) -> None:
    """Set the attribute where `attributes` reads it.

    Raises
    ------
    AttributeError
        If the object has no such slot and no ``__dict__``.
    """
    member = _member(obj, name)
    if member is not None:
        member.__set__(obj, value)
        return
    own = dictionary(obj)
    if own is None:
        raise AttributeError(f"{type(obj).__name__} has neither a slot {name!r} nor a __dict__")
    own[name] = value


def delete_attribute(obj: object, name: str) -> None:
    member = _member(obj, name)
    if member is not None:
        member.__delete__(obj)
        return
    own = dictionary(obj)
    if own is not None:
        own.pop(name, None)


def _member(obj: object, name: str) -> types.MemberDescriptorType | None:
    return next((member for slot, member in _slots(type(obj)) if slot == name), None)


def new_instance(cls: type) -> Any:
    """An object of the class whose ``__init__`` and own ``__new__`` have not run."""
    native: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    return native.__new__(cls)


def has_state_dict(obj: object) -> bool:
    """Whether the object's class (not a delegating ``__getattr__``) offers both halves of the protocol."""
    cls = type(obj)
    return not isinstance(obj, type) and all(
        callable(getattr(cls, name, None)) for name in ("state_dict", "load_state_dict")
    )


def container_base(obj: object) -> type | None:
    """The built-in container that the object's class inherits from, whose own methods reach its content."""
    return next((base for base in CONTAINER_BASES if isinstance(obj, base)), None)


def content_of(obj: Any) -> Any:
    """What an object of a class that inherits from a container holds beside its attributes; ``None`` for others."""
    base: Any = container_base(obj)
    if base is None:
        return None
    if isinstance(obj, collections.deque):
        maxlen: Any = collections.deque.__dict__["maxlen"]
        return collections.deque(base.__iter__(obj), maxlen.__get__(obj))
    return base(base.items(obj) if issubclass(base, dict) else base.__iter__(obj))


CONTAINER_BASES = (collections.OrderedDict, dict, list, set, collections.deque)
