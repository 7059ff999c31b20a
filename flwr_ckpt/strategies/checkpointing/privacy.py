"""Is there differential privacy in the chain? Then noise is never drawn twice, and nothing leaves unrecorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_PRIVATE_CLASSES = ("DifferentialPrivacy", "DPFedAvg", "ClientLevelDP")


def is_private(chain: Iterable[object], extra_state: Mapping[str, object]) -> bool:
    """Tell whether a strategy of the chain, or an object in reach of one, adds noise or accounts for it.

    Parameters
    ----------
    chain : iterable of strategies
        The wrapped strategy and those it wraps.
    extra_state : Mapping[str, object]
        What the user handed over to be kept beside them.

    Notes
    -----
    Recognised are Flower's DP strategies and subclasses of them, by name, and accountants: any object whose class (or
    a base of it) is named ``…Accountant``, as Flower's ``RdpAccountant`` and Opacus' are.
    """
    strategies = list(chain)
    held = [value for strategy in strategies for value in vars(strategy).values()]
    return any(_has_base(item, _adds_noise) for item in strategies) or any(
        _has_base(item, _accounts) for item in [*held, *extra_state.values()]
    )


def _has_base(item: object, test: object) -> bool:
    return any(test(base.__name__) for base in type(item).__mro__)  # type: ignore[operator]


def _adds_noise(name: str) -> bool:
    return name.startswith(_PRIVATE_CLASSES)


def _accounts(name: str) -> bool:
    return name.endswith("Accountant")
