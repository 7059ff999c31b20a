"""Which classes are the strategy's own, and how classes and functions are named and found again.

Nothing is ever imported because a stored name says so: names are looked up among modules that are loaded already.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from .flower import PUBLIC_MODULES, RUNTIME_HANDLES, STRATEGIES, History
from .objects import CONTAINER_BASES

# A strategy may inherit from one of these; that does not make all their objects its own.
_FOREIGN = frozenset({"flwr", "numpy", "torch", "flwr_ckpt"}) | sys.stdlib_module_names
_PLAIN_NAMESPACES = (types.SimpleNamespace, argparse.Namespace, collections.UserDict, collections.UserList)
VALUE_BASES = (int, float, str, bytes)
_NOT_WALKED = (type, types.ModuleType, types.FunctionType, types.MethodType, BaseException)
# what C classes hold cannot be seen, but for these; a class of the user's that inherits from another is not walked
_SEEN = (object, *CONTAINER_BASES, collections.defaultdict, types.SimpleNamespace, typing.Generic)


def top_package(cls: type) -> str:
    return _module_of(cls).partition(".")[0]


def _module_of(cls: type) -> str:
    module = cls.__module__
    return module if isinstance(module, str) else ""


def type_name(cls: type) -> str:
    """``module:Qualified.Name``; Flower's own classes without the module, which moves between its versions."""
    module = "flwr" if top_package(cls) == "flwr" else _module_of(cls)
    return f"{module}:{cls.__qualname__}"


class OwnPackages:
    """The packages and modules that the strategies come from.

    Attributes
    ----------
    packages : set of str
        Top-level packages of every class in the strategies' chains, without the standard library, Flower, NumPy
        and torch.
    """

    def __init__(self) -> None:
        self.packages: set[str] = set()
        self._modules: dict[str, None] = {}

    def add(self, cls: type) -> None:
        """Take up every class that `cls` inherits from."""
        for base in cls.__mro__:
            module = _module_of(base)
            if module in ("builtins", "abc", "typing"):
                continue
            self._modules[module] = None
            if module.partition(".")[0] not in _FOREIGN:
                self.packages.add(module.partition(".")[0])

    def owns(self, cls: type) -> bool:
        return any(top_package(base) in self.packages for base in cls.__mro__)

    def walks(self, obj: object) -> bool:
        """Whether the object's attributes are part of the strategy's state."""
        cls = type(obj)
        if isinstance(obj, STRATEGIES):
            return True
        if isinstance(obj, (*RUNTIME_HANDLES, *_NOT_WALKED, enum.Enum)) or _holds_what_cannot_be_seen(cls):
            return False
        if cls in _PLAIN_NAMESPACES or self.owns(cls):
            return True
        return top_package(cls) == "flwr" and (dataclasses.is_dataclass(cls) or isinstance(obj, History))

    def function_name(self, function: object) -> str | None:
        """The name under which the function or class is found in the strategies' modules, if it is."""
        qualname = getattr(function, "__qualname__", None)
        if not isinstance(qualname, str):
            return None
        for module in self._candidates(getattr(function, "__module__", None)):
            if _lookup(module, qualname) is function:
                return f"{module}:{qualname}"
        return None

    def function(self, name: str) -> Any:
        """What `function_name` named, or ``None`` if it is not there any more."""
        module, _, qualname = name.partition(":")
        for candidate in self._candidates(module):
            found = _lookup(candidate, qualname)
            if callable(found) and getattr(found, "__qualname__", None) == qualname:
                return found
        return None

    def _candidates(self, module: object) -> list[str]:
        own = list(self._modules)
        return [module, *own] if isinstance(module, str) and self._is_own_module(module) else own

    def _is_own_module(self, module: str) -> bool:
        return module in self._modules or module.partition(".")[0] in self.packages

    def value_class(self, name: str) -> type | None:
        """The enum, named tuple, or class of numbers or strings of that name."""
        cls = self._find(name)
        if cls is None or not (issubclass(cls, (enum.Enum, *VALUE_BASES)) or is_named_tuple(cls)):
            return None
        return cls

    def finds_value_class(self, cls: type) -> bool:
        return self.value_class(type_name(cls)) is cls

    def rebuilt_class(self, name: str) -> type | None:
        """The class of that name, if its objects may be made again without running its ``__init__``."""
        cls = self._find(name)
        if cls is None or issubclass(cls, STRATEGIES):
            return None
        return cls if dataclasses.is_dataclass(cls) or cls in _PLAIN_NAMESPACES else None

    def rebuilds(self, cls: type) -> bool:
        return self.rebuilt_class(type_name(cls)) is cls

    def is_key_class(self, cls: type) -> bool:
        """Whether objects of the class are equal, and have one hash, by their fields alone."""
        parameters = getattr(cls, "__dataclass_params__", None)
        return parameters is not None and parameters.eq and parameters.frozen and self.rebuilds(cls)

    def _find(self, name: str) -> type | None:
        module, _, qualname = name.partition(":")
        if module == "flwr":
            return next(_classes(PUBLIC_MODULES, qualname), None)
        if not self._is_own_module(module) and module.partition(".")[0] not in sys.stdlib_module_names:
            return None
        return next(_classes([module], qualname), None)


def is_named_tuple(cls: type) -> bool:
    fields = getattr(cls, "_fields", None)
    return issubclass(cls, tuple) and isinstance(fields, tuple) and cls.__new__ is not tuple.__new__


def _holds_what_cannot_be_seen(cls: type) -> bool:
    return any(
        base not in _SEEN and isinstance(base.__dict__.get("__new__"), types.BuiltinFunctionType)
        for base in cls.__mro__
    )


def _classes(modules: Iterable[str], qualname: str) -> Iterator[type]:
    for module in modules:
        found = _lookup(module, qualname)
        if isinstance(found, type):
            yield found


def _lookup(module: str, qualname: str) -> Any:
    """Find what a module has under a name, or what a class in it has; never what another module has that it imports."""
    found: Any = sys.modules.get(module)
    for number, part in enumerate(qualname.split(".")):
        if found is None or (number and not isinstance(found, type)):
            return None
        found = getattr(found, part, None)
    return found
