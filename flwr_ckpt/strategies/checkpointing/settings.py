"""What the user asked for, checked once, and its form in a Flower run config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...store import Keep, parse_keep

Resume = Literal["auto", "must", "never"]
Durable = Literal["background", "before-release"]
OnError = Literal["warn", "raise"]

PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of `CheckpointingStrategy`, validated. `None` means: decided from the strategy."""

    loss_key: str = "loss"
    resume: Resume = "auto"
    save_every: int = 1
    keep: Keep | None = None
    seed: int | None = None
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    durable: Durable | None = None
    on_error: OnError = "warn"

    def __post_init__(self) -> None:
        _one_of("resume", self.resume, get_args(Resume))
        _one_of("on_error", self.on_error, get_args(OnError))
        if self.durable is not None:
            _one_of("durable", self.durable, get_args(Durable))
        if type(self.save_every) is not int or self.save_every < 1:
            raise ValueError(f"save_every={self.save_every!r}: expected a whole number of rounds, 1 or more")
        if self.keep is not None and not isinstance(self.keep, Keep):
            raise TypeError(
                f"keep={self.keep!r}: expected KeepLatest(n), KeepBest(n, metric, mode), KeepEvery(k) or KeepAll(), "
                "joined with |"
            )
        if self.seed is not None and type(self.seed) is not int:
            raise TypeError(f"seed={self.seed!r}: expected an int or None")
        if not isinstance(self.exclude, tuple) or not all(isinstance(path, str) for path in self.exclude):
            raise TypeError(f"exclude={self.exclude!r}: expected a tuple of attribute paths, such as ('writer',)")
        for name, item in self.extra_state.items():
            if not (callable(getattr(item, "state_dict", None)) and callable(getattr(item, "load_state_dict", None))):
                raise TypeError(
                    f"extra_state[{name!r}] is a {type(item).__name__} without state_dict() and load_state_dict(); "
                    "give it both, or hand over an object that has them"
                )

    def before_release(self, *, private: bool) -> bool:
        """Whether each commit is waited for: as asked, or wherever there is differential privacy.

        Raises
        ------
        ValueError
            If not every round is to be saved.
        """
        durable = self.durable or ("before-release" if private else "background")
        if durable == "before-release" and self.save_every > 1:
            raise ValueError(
                f'save_every={self.save_every} with durable="before-release": every round has to be on disk before its '
                'aggregate leaves the server; use save_every=1, or durable="background"'
            )
        return durable == "before-release"


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class RunConfig:
    """The ``checkpoint-*`` keys of a run config, parsed: where the run lies, and arguments for the rest."""

    run: str | None
    home: str | None
    arguments: Mapping[str, Any]


def parse_run_config(run_config: Mapping[str, Any]) -> RunConfig:
    """Read the ``checkpoint-*`` keys of ``context.run_config``.

    An empty string is unset: TOML has no null, and Flower only lets a declared key be overridden.

    Raises
    ------
    ValueError
        If a key that starts with ``checkpoint-`` is not known, or a value does not make sense.
    """
    given = {key[len(PREFIX) :]: value for key, value in run_config.items() if key.startswith(PREFIX)}
    known = {*_PARSERS, "run", "home"}
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"run config: {', '.join(PREFIX + key for key in unknown)} is not known; "
            f"known are {', '.join(PREFIX + key for key in sorted(known))}"
        )
    given = {key: value for key, value in given.items() if value != ""}
    arguments = {}
    for key, value in given.items():
        if key in _PARSERS:
            name, parse = _PARSERS[key]
            try:
                arguments[name] = parse(value)
                Settings(**{name: arguments[name]})  # checked here, where the key is known that the user wrote
            except (TypeError, ValueError) as error:
                raise ValueError(f"run config: {PREFIX}{key}={value!r}: {error}") from error
    return RunConfig(_text(given, "run"), _text(given, "home"), arguments)


def _text(given: Mapping[str, Any], key: str) -> str | None:
    value = given.get(key)
    try:
        return None if value is None else _string(value)
    except TypeError as error:
        raise ValueError(f"run config: {PREFIX}{key}={value!r}: {error}") from error


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found a {type(value).__name__}")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"expected a whole number, found a {type(value).__name__}")
    try:
        return int(value)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _names(value: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in _string(value).split(",") if part.strip())


_PARSERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "resume": ("resume", _string),
    "save-every": ("save_every", _number),
    "keep": ("keep", lambda value: parse_keep(_string(value))),
    "seed": ("seed", _number),
    "durable": ("durable", _string),
    "on-error": ("on_error", _string),
    "loss-key": ("loss_key", _string),
    "exclude": ("exclude", _names),
}
