"""How an object becomes a checkpointing one without becoming another object.

Its class is replaced by one made on the spot, whose only base is the class it had and whose body holds our hooks. So
``self.aggregate_train(...)`` in a ``start()`` of the user's, in a closure or in a bound method meets the hook,
``super()`` in the user's methods finds what it always found, and ``isinstance`` and the log keep saying ``FedAdam``.
(A wrapper that calls ``inner.start()`` is never called back; a mixin as first base has another layout; a second
object over the same attributes loses slots and closures.)
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from flwr.server.strategy import Strategy as LegacyStrategy

from .. import logs
from .chain import Strategy, strategy_chain
from .legacy import LegacyRun
from .message import MessageRun

RESERVED = "_flwr_ckpt"  # the one attribute of ours in the strategy's own namespace


def run_of(strategy: Any) -> MessageRun | LegacyRun:
    """The run that a wrapped strategy belongs to."""
    run: MessageRun | LegacyRun = object.__getattribute__(strategy, "__dict__")[RESERVED]
    return run


def is_adopted(strategy: object) -> bool:
    """Whether an object has been wrapped already."""
    return RESERVED in getattr(strategy, "__dict__", {})


def adopt(strategy: Strategy, run: MessageRun | LegacyRun, public: Mapping[str, Any]) -> type:
    """Replace the class of a strategy by one with our hooks, and return that class.

    Parameters
    ----------
    strategy : Strategy
        Becomes a checkpointing one.
    run : MessageRun or LegacyRun
        What the hooks talk to.
    public : Mapping[str, object]
        Methods and properties to add; where the strategy has a name, its own stays.

    Raises
    ------
    TypeError
        If the class cannot be subclassed, or an attribute of the object hides one of its hooks.
    """
    base = type(strategy)
    hooks = _LEGACY_HOOKS if isinstance(strategy, LegacyStrategy) else _MESSAGE_HOOKS
    if hidden := sorted(set(hooks) & set(vars(strategy))):
        raise TypeError(
            f"{base.__name__}: the attribute {hidden[0]!r} of this object hides the method of that name, so it would "
            "not be checkpointed; define it in a subclass instead"
        )
    _warn_of_stored_methods(strategy, set(hooks))
    body = {name: item for name, item in public.items() if not hasattr(strategy, name)}
    body |= {name: hook(base) for name, hook in hooks.items()}
    body |= {"__slots__": (), "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    try:
        cls = types.new_class(base.__name__, (base,), {}, lambda namespace: namespace.update(body))
    except TypeError as error:
        raise TypeError(
            f"{base.__module__}.{base.__qualname__} cannot be subclassed without arguments ({error}), and wrapping "
            "makes a subclass of it; give its __init_subclass__ defaults"
        ) from error
    object.__setattr__(strategy, RESERVED, run)
    object.__setattr__(strategy, "__class__", cls)
    return cls


def _warn_of_stored_methods(strategy: Strategy, names: set[str]) -> None:
    for key, value in vars(strategy).items():
        if isinstance(value, types.MethodType) and value.__self__ is strategy and value.__name__ in names:
            logs.warning(
                "strategy.%s holds the method %s as it was before wrapping; what calls it there is not checkpointed. "
                "Call self.%s instead",
                key,
                value.__name__,
                value.__name__,
            )


# --- hooks: each finds the strategy's own method, passes nested calls through, and leaves the rest to the run


def _hook(name: str, call: Callable[..., Any]) -> Callable[[type], Callable[..., Any]]:
    def make(base: type) -> Callable[..., Any]:
        @functools.wraps(getattr(base, name))
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            run = run_of(self)
            original = getattr(base, name).__get__(self, type(self))
            if run.session.depth.level:
                return original(*args, **kwargs)
            return call(run, original, *args, **kwargs)

        return hook

    return make


def _start(run: MessageRun, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return run.start(original, args, kwargs)


_MESSAGE_HOOKS: Mapping[str, Callable[[type], Callable[..., Any]]] = {
    "start": _hook("start", _start),
    "configure_train": _hook("configure_train", functools.partial(MessageRun.configure, phase="train")),
    "aggregate_train": _hook("aggregate_train", MessageRun.aggregate_train),
    "configure_evaluate": _hook("configure_evaluate", functools.partial(MessageRun.configure, phase="evaluate")),
    "aggregate_evaluate": _hook("aggregate_evaluate", MessageRun.aggregate_evaluate),
}

_LEGACY_HOOKS: Mapping[str, Callable[[type], Callable[..., Any]]] = {
    "initialize_parameters": _hook("initialize_parameters", LegacyRun.initialize_parameters),
    "configure_fit": _hook("configure_fit", functools.partial(LegacyRun.configure, phase="train")),
    "aggregate_fit": _hook("aggregate_fit", LegacyRun.aggregate_fit),
    "configure_evaluate": _hook("configure_evaluate", functools.partial(LegacyRun.configure, phase="evaluate")),
    "aggregate_evaluate": _hook("aggregate_evaluate", LegacyRun.aggregate_evaluate),
    "evaluate": _hook("evaluate", LegacyRun.evaluate),
}


def wrapped_inside(strategy: Strategy) -> bool:
    """Whether a strategy that this one wraps has been wrapped by us already."""
    return any(is_adopted(item) for item in strategy_chain(strategy)[1:])
