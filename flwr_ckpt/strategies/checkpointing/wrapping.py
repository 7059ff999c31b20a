"""`CheckpointingStrategy`: one line around any Flower strategy."""

from __future__ import annotations

import inspect
import os
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy as MessageStrategy

from ...store import CheckpointStore, Keep, Location, locate
from .adopt import adopt, is_adopted, run_of, wrapped_inside
from .chain import Strategy
from .legacy import LEGACY, LegacyRun
from .message import MESSAGE, MessageRun
from .session import Session
from .settings import Durable, OnError, Resume, Settings, parse_run_config

if TYPE_CHECKING:
    from ...server_module import BaseServerCheckpointAndStateModule


class _Attribute:
    """A read-only attribute that gives way when the strategy sets one of that name (unlike ``property``)."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read
        self.__doc__ = read.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._read(instance)


class CheckpointingStrategy(metaclass=ABCMeta):  # noqa: B024 - for register(): nothing derives from it
    """Make a Flower strategy carry on where it stopped when its server dies.

    Returns the object it is given, a checkpointing one from then on: an instance of its own class and of this one.

    Parameters
    ----------
    strategy : flwr.serverapp.strategy.Strategy or flwr.server.strategy.Strategy
        Any strategy of either API: Flower's or your own, also one that wraps another or has its own ``start()``.
    run : str or os.PathLike, optional
        Where the run lies: a run name (``"digits"``, ``"cifar/lr-0.1"``) under the checkpoint home, an absolute path,
        or a URL (``"s3://bucket/runs/digits"``; needs the extra ``cloud``). May be left out if `module` has a
        ``state_checkpointer``, whose folder is then the place.
    module : BaseServerCheckpointAndStateModule, optional
        What the parameters mean: model checkpointers are offered each evaluated round's model, packed and partial
        formats become whole models. See ``flwr_ckpt.server_module``.
    loss_key : str
        Message API: the evaluation metric that is the loss. Without `module` nothing looks at it.
    resume : {"auto", "must", "never"}
        ``"auto"``: the newest sound round, or a fresh start. ``"must"``: an error if there is none, and differences of
        configuration are accepted. ``"never"``: an error if there is one.
    save_every : int
        Commit every k-th round only, and the last.
    keep : Keep, optional
        Which rounds stay: `KeepLatest`, `KeepBest`, `KeepEvery`, `KeepAll`, joined with ``|``. Default
        ``KeepLatest(3)``; `KeepAll` for a strategy with its own ``start()``. The newest sound round always stays.
    seed : int, optional
        Makes the server's side reproducible, so that a killed run ends in the same bits as one that was not. Under
        differential privacy noise and sampling stay fresh.
    extra_state : Mapping[str, object], optional
        Objects with ``state_dict()`` and ``load_state_dict()`` to keep beside the strategy's own state.
    exclude : iterable of str
        Attribute paths of the strategy that are not state (``("writer", "strategy.cache")``).
    durable : {"background", "before-release"}, optional
        ``"background"``: written while clients train. ``"before-release"``: on disk before the aggregate leaves the
        server; the default under differential privacy.
    on_error : {"warn", "raise"}
        What becomes of a commit that fails: logged, and the next round commits again; or raised.

    Raises
    ------
    TypeError
        If `strategy` is not a strategy, is wrapped already, or cannot be subclassed.
    ValueError
        If an argument does not make sense; it says why.

    Notes
    -----
    Once the run has started, `flush`, `close`, `store`, `resumed_round` and `attempts` are there on the object as well,
    unless the strategy has a name of its own like that.
    """

    def __new__(
        cls,
        strategy: Strategy,
        run: str | os.PathLike[str] | None = None,
        *,
        module: BaseServerCheckpointAndStateModule | None = None,
        loss_key: str = "loss",
        resume: Resume = "auto",
        save_every: int = 1,
        keep: Keep | None = None,
        seed: int | None = None,
        extra_state: Mapping[str, Any] | None = None,
        exclude: Iterable[str] = (),
        durable: Durable | None = None,
        on_error: OnError = "warn",
    ) -> Any:
        missing = TypeError('run is missing: say where the run lies, as in CheckpointingStrategy(strategy, "digits")')
        settings = Settings(
            loss_key=loss_key,
            resume=resume,
            save_every=save_every,
            keep=keep,
            seed=seed,
            extra_state=dict(extra_state or {}),
            exclude=_paths(exclude),
            durable=durable,
            on_error=on_error,
        )
        return _wrap(strategy, _place(run, None, module, missing), settings, module, None)

    @classmethod
    def from_run_config(cls, strategy: Strategy, context: Context, **overrides: Any) -> Any:
        """Wrap a strategy as ``context.run_config`` says, so that ``flwr run --run-config`` can set everything.

        Parameters
        ----------
        strategy : Strategy
            As for `CheckpointingStrategy`.
        context : flwr.app.Context
            Its run config may hold ``checkpoint-run``, ``-home``, ``-resume``, ``-save-every``, ``-keep``
            (``"latest:3|best:2:evaluate/loss:min|every:10"``), ``-seed``, ``-durable``, ``-on-error``, ``-loss-key``
            and ``-exclude`` (comma-separated). An empty string is unset.
        **overrides
            Arguments of `CheckpointingStrategy` that win over the run config.

        Raises
        ------
        ValueError
            If a key that starts with ``checkpoint-`` is not known, or a value makes no sense.
        """
        config = parse_run_config(context.run_config)
        arguments = {**config.arguments, **overrides}
        run, module = arguments.pop("run", config.run), arguments.pop("module", None)
        missing = ValueError(
            'run config: checkpoint-run is not set; say where the run lies, as in checkpoint-run="digits"'
        )
        arguments["exclude"] = _paths(arguments.get("exclude", ()))
        place = _place(run, config.home, module, missing)
        return _wrap(strategy, place, Settings(**arguments), module, dict(context.run_config))

    # What follows is lent to the class that a strategy gets; `self` is the strategy.

    def flush(self) -> None:
        """Return once all that was handed over is durable.

        Raises
        ------
        FencedError
            If another server has taken the run over.
        CheckpointError
            If a commit failed.
        """
        run_of(self).session.flush()

    def close(self) -> None:
        """Flush, and end the writer. The message API does so as ``start()`` returns, the legacy API at exit.

        Raises
        ------
        FencedError, CheckpointError
            As `flush`.
        """
        run = run_of(self)
        run.close()
        run.session.flush()

    @_Attribute
    def store(self) -> CheckpointStore:
        """The run's `CheckpointStore`."""
        return CheckpointStore(run_of(self).session.location)

    @_Attribute
    def resumed_round(self) -> int | None:
        """The round this process resumed from, or None if it started afresh."""
        session = run_of(self).session
        return None if session.loaded is None else session.record.last_round

    @_Attribute
    def attempts(self) -> dict[int, int]:
        """How often each round's training was sent to clients (round to count)."""
        return dict(sorted(run_of(self).session.attempts.items()))

    if TYPE_CHECKING:  # what the wrapped strategy brings: reads and writes of attributes are its own

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


_MODULE = "flwr_ckpt.server_module.BaseServerCheckpointAndStateModule"
_PUBLIC = {name: vars(CheckpointingStrategy)[name] for name in ("flush", "close", "store", "resumed_round", "attempts")}


def _paths(exclude: Iterable[str]) -> tuple[str, ...]:
    if isinstance(exclude, str):  # a string is an iterable of strings, too
        raise TypeError(f"exclude={exclude!r}: expected a tuple of attribute paths, such as ({exclude!r},)")
    return tuple(exclude)


def _place(
    run: str | os.PathLike[str] | None,
    home: str | os.PathLike[str] | None,
    module: BaseServerCheckpointAndStateModule | None,
    missing: Exception,
) -> Location:
    """Where the run lies: as it is said, or where the module keeps its state."""
    if module is not None and not hasattr(module, "state_checkpointer"):
        raise TypeError(f"module={module!r:.80}: expected a server module, such as {_MODULE}")
    checkpointer = None if module is None else module.state_checkpointer
    if checkpointer is None:
        if run is None:
            raise missing
        return locate(run, home)
    if run is not None:
        raise ValueError(
            f"run={os.fspath(run)!r} says where the run lies, and so does the module's state_checkpointer "
            f"({checkpointer.checkpoint_dir}); give one of the two"
        )
    return locate(Path(checkpointer.checkpoint_dir))


def _wrap(
    strategy: Strategy,
    location: Location,
    settings: Settings,
    module: BaseServerCheckpointAndStateModule | None,
    run_config: Mapping[str, Any] | None,
) -> Any:
    _check_strategy(strategy)
    legacy = isinstance(strategy, LegacyStrategy)
    session = Session(
        strategy,
        location,
        settings,
        LEGACY if legacy else MESSAGE,
        own_start=isinstance(strategy, MessageStrategy) and type(strategy).start is not MessageStrategy.start,
        run_config=run_config,
        module=module,
    )
    run = LegacyRun(session) if legacy else MessageRun(session)
    CheckpointingStrategy.register(adopt(strategy, run, _PUBLIC))
    return strategy


def _check_strategy(strategy: object) -> None:
    if inspect.isclass(strategy):
        raise TypeError(f"{strategy.__name__} is a class; hand over an object: {strategy.__name__}(...)")
    if not isinstance(strategy, (MessageStrategy, LegacyStrategy)):
        raise TypeError(
            f"{type(strategy).__name__} is not a Flower strategy; expected a flwr.serverapp.strategy.Strategy or a "
            "flwr.server.strategy.Strategy"
        )
    if is_adopted(strategy):
        raise TypeError(f"this {type(strategy).__name__} is wrapped already; one CheckpointingStrategy is enough")
    if wrapped_inside(strategy):
        raise TypeError(
            f"a strategy inside this {type(strategy).__name__} is wrapped already; wrap the outermost only: "
            f"CheckpointingStrategy({type(strategy).__name__}(Strategy(...)), run)"
        )
