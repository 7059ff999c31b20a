"""Does this checkpoint belong to this run?

Asked before anything is sent: a sweep under one name must never get the first run's result for its own, and a
stranger must not push the owner of a run aside.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.common import Parameters

from ...store import CheckpointMismatchError, Json, Location, array_type, from_json, to_json, without_secrets
from .settings import PREFIX
from .telling import command

ArrayTypes = list[list[Any]]  # [name, dtype, shape] of each array, in order

_ROUNDS_KEY = re.compile(r"num.*rounds", re.IGNORECASE)
_SHOWN = 12  # differences listed one by one before the message says how many more there are


@dataclass(frozen=True)
class Identity:
    """Who writes a run: what is compared when it is resumed, and what is only logged.

    Attributes
    ----------
    api : str
        ``"message"`` or ``"legacy"``.
    classes : list of str
        The strategy's class and those of the strategies it wraps.
    arrays : list or None
        Name, dtype and shape of each initial array; None where they are not known yet.
    app : str or None
        Flower's id of the app (``publisher/name``).
    configuration : Mapping[str, object]
        What the run was configured with: ``override_config`` and, if the user showed it, ``run_config``; numbers and
        booleans of the initial train and evaluate configs.
    num_rounds : int or None
        Not compared; a configuration value that follows it is no difference.
    info : Mapping[str, object]
        For the log and the curious: versions, the app's hash.
    """

    api: str
    classes: list[str]
    arrays: ArrayTypes | None = None
    app: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    num_rounds: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Encode for the store."""
        return to_json({name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def from_json(cls, document: Json) -> Identity:
        """Decode what `to_json` made; fields of a later version are left out.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError
            If it is something else.
        """
        fields = from_json(document)
        _require_types(fields)
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})


def _require_types(fields: Mapping[str, Any]) -> None:
    """Make sure that whatever looks at an identity later finds what it looks for."""
    groups = [fields.get("configuration", {}), fields.get("info", {}).get("strings", {})]
    texts = [fields["api"], *fields["classes"]]
    for group in groups:
        for key, values in group.items():
            texts.extend([key, *values.keys()])
    for name, dtype, shape in fields.get("arrays") or ():
        texts.extend([name, dtype])
        list(shape)
    if not all(isinstance(text, str) for text in texts) or not isinstance(fields["classes"], list):
        raise TypeError("names that are no text")
    known = (fields.get("app"), fields.get("info", {}).get("app-hash"))
    if not all(value is None or isinstance(value, str) for value in known):
        raise TypeError("an app whose name is no text")


def versions() -> dict[str, str]:
    """The versions a run was written with."""
    return {
        "python": platform.python_version(),
        "flwr": metadata.version("flwr"),
        "numpy": np.__version__,
    }


def record_types(arrays: ArrayRecord) -> ArrayTypes:
    """Name, dtype and shape of each array of a record, as Flower states them."""
    return [[name, array.dtype, list(array.shape)] for name, array in arrays.items()]


def parameters_types(parameters: Parameters) -> ArrayTypes:
    """Name, dtype and shape of each tensor of legacy parameters; opaque ones have only their number."""
    types = []
    for index, tensor in enumerate(parameters.tensors):
        dtype, shape = array_type(tensor) or ("", ())
        types.append([f"{index:04d}", dtype, list(shape)])
    return types


def check_model(stored: Identity, given: Identity, where: str) -> None:
    """Refuse a checkpoint of another API, strategy or model, whatever ``resume=`` says.

    Raises
    ------
    CheckpointMismatchError
        Naming both sides.
    """
    differences = []
    if stored.api != given.api:
        differences.append(f"API: the checkpoint's is {stored.api}, this run's is {given.api}")
    elif stored.classes != given.classes:
        differences.append(f"strategy: {' > '.join(stored.classes)} there, {' > '.join(given.classes)} here")
    if stored.arrays is not None and given.arrays is not None:
        differences.extend(_array_differences(stored.arrays, given.arrays))
    if differences:
        raise CheckpointMismatchError(
            f"{where} holds another run's checkpoints:\n{_listed(differences)}\n"
            f"Use another run name, or `{command('rm', where)}` to start over."
        )


def check_configuration(stored: Identity, given: Identity, where: str, more: Iterable[str] = ()) -> None:
    """Refuse a checkpoint of another app or configuration (``resume="auto"``).

    Parameters
    ----------
    more : iterable of str
        Further differences, found elsewhere.

    Raises
    ------
    CheckpointMismatchError
        Listing each difference and the ways on.
    """
    differences = []
    if stored.app != given.app and None not in (stored.app, given.app):
        differences.append(f"app: {stored.app} there, {given.app} here")
    differences.extend(_configuration_differences(stored, given))
    differences.extend(more)
    if differences:
        raise CheckpointMismatchError(
            f"{where} was made by a run that differs from this one:\n{_listed(differences)}\n"
            f"If it is another run: use another run name, or `{command('rm', where)}` to start over. "
            'If the run shall go on with the differences: resume="must".'
        )


def _array_differences(stored: ArrayTypes, given: ArrayTypes) -> Iterator[str]:
    there = {name: (dtype, list(shape)) for name, dtype, shape in stored}
    here = {name: (dtype, list(shape)) for name, dtype, shape in given}
    for name in there:
        if name not in here:
            yield f"array {name!r}: {_typed(there[name])} there, none here"
        elif there[name] != here[name]:
            yield f"array {name!r}: {_typed(there[name])} there, {_typed(here[name])} here"
    yield from (f"array {name!r}: none there, {_typed(here[name])} here" for name in here if name not in there)
    if there == here and list(there) != list(here):
        yield "arrays: the same names in another order"


def _typed(kind: tuple[str, list[int]]) -> str:
    return f"{kind[0] or 'opaque'}{kind[1]}"


def _configuration_differences(stored: Identity, given: Identity) -> Iterator[str]:
    for group in sorted(set(stored.configuration) & set(given.configuration)):
        there, here = stored.configuration[group], given.configuration[group]
        for key in sorted(set(there) | set(here)):
            old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
            if _same(old, new) or key.startswith(PREFIX) or _is_rounds(key, old, new, stored, given):
                continue
            yield f"{group}[{key!r}]: {old!r} there, {new!r} here"


class _Absent:
    def __repr__(self) -> str:
        return "not set"


_ABSENT = _Absent()


def _same(left: object, right: object) -> bool:
    return type(left) is type(right) and repr(left) == repr(right)


def _is_rounds(key: str, old: object, new: object, stored: Identity, given: Identity) -> bool:
    if _ROUNDS_KEY.search(key):
        return True
    follows_now = new == given.num_rounds or new is _ABSENT
    followed_then = old == stored.num_rounds or old is _ABSENT
    return given.num_rounds is not None and follows_now and followed_then and new is not old


def _listed(differences: list[str]) -> str:
    lines = [f"  - {difference}" for difference in differences[:_SHOWN]]
    if len(differences) > _SHOWN:
        lines.append(f"  - and {len(differences) - _SHOWN} more")
    return "\n".join(lines)


def shown_config(config: Mapping[str, Any], location: Location) -> Json:
    """A run config without secrets, and without the run's own name: a fork or a copy has another one."""
    names = (location.label, location.where)
    return without_secrets({key: value for key, value in config.items() if value not in names})
