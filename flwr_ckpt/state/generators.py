"""Random generators: read as plain containers, put back into the very object that others hold a reference to."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

import numpy as np

_MERSENNE_WORDS = 625  # 624 words of state and the position in them
_MOST_SPAWNED = 1 << 20  # children that are spawned again one by one, a second's work; beyond, a new generator is made
_MOST_POOLED = 1 << 8  # words of a seed's pool, which NumPy mixes with each other; it has 4 if nobody asks for more


def is_generator(value: object) -> bool:
    if isinstance(value, random.SystemRandom):
        return False
    return isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)) or _is_torch(value)


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Generator)


def kind_of(generator: Any) -> str:
    """The kind, and what a new one would have to be made from."""
    if isinstance(generator, random.Random):
        return "random.Random"
    if isinstance(generator, np.random.Generator):
        return f"numpy.Generator/{type(generator.bit_generator).__name__}"
    if isinstance(generator, np.random.RandomState):
        return "numpy.RandomState"
    return f"torch.Generator/{generator.device}"


def state_of(generator: Any) -> dict[str, Any] | None:
    """All that decides what is drawn next; ``None`` if the generator does not tell."""
    try:
        if isinstance(generator, random.Random):
            version, words, gauss = generator.getstate()
            return {"version": version, "words": np.array(words, np.uint32), "gauss": gauss}
        if isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            return {"bits": bits.state, "seed": _seed_of(bits)}
        if isinstance(generator, np.random.RandomState):
            return {"bits": generator.get_state(legacy=False)}
        return {"words": generator.get_state().numpy().copy()}
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


def _seed_of(bits: Any) -> dict[str, Any] | None:
    """Where children are spawned from: not part of the state proper, yet the next `spawn` depends on it."""
    seed = getattr(bits, "seed_seq", None)
    return dict(seed.state) if isinstance(seed, np.random.SeedSequence) else None


def put_back(generator: Any, kind: str, state: dict[str, Any]) -> Any:
    """Set `generator` to `state` in place; if it is none of that kind, or cannot be, return a new one."""
    if not is_generator(generator) or kind_of(generator) != kind:
        return make(kind, state)
    if isinstance(generator, np.random.Generator) and not _catch_up(generator, state["seed"]):
        return make(kind, state)
    _set(generator, state)
    return generator


def _catch_up(generator: np.random.Generator, stored: dict[str, Any] | None) -> bool:
    """Whether the generator's next children are the stored one's, having spawned those that came before."""
    seed = getattr(generator.bit_generator, "seed_seq", None)
    if stored is None or not stored["n_children_spawned"]:
        return True
    if not isinstance(seed, np.random.SeedSequence):
        return False
    mine, theirs = dict(seed.state), dict(stored)
    missing = theirs.pop("n_children_spawned") - mine.pop("n_children_spawned")
    if not 0 <= missing <= _MOST_SPAWNED or repr(mine) != repr(theirs):
        return False
    for _ in range(missing):
        seed.spawn(1)
    return True


def make(kind: str, state: dict[str, Any]) -> Any:
    """A new generator in that state.

    Raises
    ------
    ValueError
        If NumPy has no bit generator of that name.
    """
    name, _, detail = kind.partition("/")
    generator: Any
    if name == "random.Random":
        generator = random.Random(0)
    elif name == "numpy.RandomState":
        generator = np.random.RandomState(0)
    elif name == "numpy.Generator":
        bit_generator = getattr(np.random, detail, None)
        if not (isinstance(bit_generator, type) and issubclass(bit_generator, np.random.BitGenerator)):
            raise ValueError(f"numpy.random has no bit generator {detail!r}")
        seed = None if state["seed"] is None else _seed(**state["seed"])
        generator = np.random.Generator(bit_generator(seed))
    else:
        generator = importlib.import_module("torch").Generator(device=detail)
    _set(generator, state)
    return generator


def _seed(**state: Any) -> np.random.SeedSequence:
    if state["pool_size"] > _MOST_POOLED:
        raise ValueError(f"a seed with a pool of {state['pool_size']} words")
    return np.random.SeedSequence(**state)


def _set(generator: Any, state: dict[str, Any]) -> None:
    if isinstance(generator, random.Random):
        words = tuple(int(word) for word in state["words"])
        if len(words) != _MERSENNE_WORDS:
            raise ValueError(f"the stored state of a random.Random has {len(words)} words, not {_MERSENNE_WORDS}")
        generator.setstate((state["version"], words, state["gauss"]))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state["bits"]
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state["bits"])
    else:
        generator.set_state(importlib.import_module("torch").from_numpy(state["words"]))
