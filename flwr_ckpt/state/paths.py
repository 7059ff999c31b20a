"""Where a value was found: ``strategy.foo.bar``, ``strategy.opt[3]``, ``strategy.d['k']``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_WHOLE = 64  # deeper paths are shortened: a name of 100,000 steps helps nobody, and costs quadratic time
_TAIL = 16


class Path:
    """One step below its parent; rendered only when somebody has to read it."""

    __slots__ = ("_name", "depth", "in_state_dict", "key", "kind", "parent")

    def __init__(self, parent: Path | None, kind: str, key: object) -> None:
        self.parent = parent
        self.kind = kind
        self.key = key
        self._name: str | None = None
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.in_state_dict: bool = kind == "call" or (parent is not None and parent.in_state_dict)

    @classmethod
    def root(cls, name: str) -> Path:
        return cls(None, "attribute", name)

    def attribute(self, name: str) -> Path:
        return Path(self, "attribute", name)

    def item(self, key: object) -> Path:
        return Path(self, "item", key)

    def index(self, index: int) -> Path:
        """A step into a sequence, which is put back whole or not at all."""
        return Path(self, "index", index)

    def whole(self) -> Path | None:
        """The outermost sequence that this leads into, if any."""
        found, step = None, self
        while step.parent is not None:
            if step.kind == "index":
                found = step.parent
            step = step.parent
        return found

    def state_dict(self) -> Path:
        return Path(self, "call", "state_dict")

    def owner(self) -> Path | None:
        """The object whose ``state_dict`` this lies in, if it lies in one."""
        step: Path | None = self
        while step is not None and step.in_state_dict and step.kind != "call":
            step = step.parent
        return step.parent if step is not None and step.in_state_dict else None

    def _steps(self) -> list[Path]:
        """Root first; of a very deep path only its last steps."""
        limit = self.depth + 1 if self.depth < _WHOLE else _TAIL
        steps: list[Path] = []
        step: Path | None = self
        while step is not None and len(steps) < limit:
            steps.append(step)
            step = step.parent
        steps.reverse()
        return steps

    def __str__(self) -> str:
        return self._prefix("") + "".join(_TEXT[step.kind](step.key) for step in self._steps()).lstrip(".")

    def blob_name(self) -> str:
        """The path as the name of an array: ``strategy.m_t.conv1``."""
        if self._name is None:
            self._name = self._made_name()
        return self._name

    def _made_name(self) -> str:
        """From the parent's, which thousands of siblings share."""
        if 0 < self.depth < _WHOLE and self.parent is not None:
            above = self.parent.blob_name()
            return above if self.kind in ("call", "content") else f"{above}.{self.key}"
        parts = [str(step.key) for step in self._steps() if step.kind not in ("call", "content")]
        return self._prefix(".") + ".".join(parts)

    def _prefix(self, separator: str) -> str:
        return "" if self.depth < _WHOLE else f"…({self.depth - _TAIL} levels)…{separator}"


def _shown(key: object) -> str:
    try:
        return repr(key)[:80]
    except Exception:  # the key's own __repr__ may do anything
        return f"<{type(key).__name__}>"


_TEXT: dict[str, Callable[[object], str]] = {
    "attribute": lambda key: f".{key}",
    "item": lambda key: f"[{_shown(key)}]",
    "index": lambda key: f"[{key}]",
    "call": lambda key: f".{key}()",
    "content": lambda _: "",
}


class Names:
    """Gives every thing a readable name of its own."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}~{count}"
        self._taken.add(name)
        return name
