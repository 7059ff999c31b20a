"""Captures what must survive, and puts it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flwr_ckpt.store.draft import Blob, Buffer
from flwr_ckpt.store.errors import CheckpointCorruptError, CheckpointError
from flwr_ckpt.store.values import Json

from .array_decode import ArrayDecoder
from .arrays import ArrayEncoder, digest_of
from .buffers import BlobCollector, BufferPool, nothing
from .classes import OwnPackages
from .compare import alike
from .encode import Encoded, Encoder
from .flat import FlatRoots
from .inventory import inventory
from .leaves import Node
from .links import Links, LiveArrays
from .live import LiveObjects
from .restore import Restorer
from .sharing import Sharing
from .show import short
from .singles import Opaque
from .soundness import sound_tree
from .three import Three
from .tree import MISSING, OBJECT_KINDS, SEQUENCE_KINDS, Tree, kind_of, places

Roots = Mapping[str, Any]


class Snapshot(NamedTuple):
    """The state at one moment. A tuple: one is made while training waits.

    Attributes
    ----------
    tree : Json
        Plain values, and nodes that name the blobs.
    baseline : Json
        The tree, without data, of the first hook of this process; the same object every time.
    blobs : tuple of Blob
        The arrays; valid until `release` is called.
    release : callable
        Gives the memory of the blobs back; may be called from any thread, and more than once.
    problems : tuple of str
        Attributes that became something that cannot be stored: path, what, and what to do.
    inventory : tuple of str
        Lines for the log: path, what, size; and what is not kept.
    warnings : tuple of str
        What a resumed run would miss, each said once: what is not kept and has been replaced by another one, and
        objects that were built after the start.
    """

    tree: Json
    baseline: Json
    blobs: tuple[Blob, ...]
    release: Callable[[], None]
    problems: tuple[str, ...]
    inventory: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StoredState:
    """A `Snapshot` as it was read from a store: `read` gives each blob's exact bytes by its name."""

    tree: Json
    baseline: Json
    read: Mapping[str, Buffer]


class StateRecorder:
    """Finds the state of a strategy of either API, without a list of known classes.

    The roots are given anew at each call, because some appear late: ``"strategy"``, an object; ``"extra"``, a mapping
    of objects with ``state_dict``/``load_state_dict``; under any other name a Flower record or an object.

    Parameters
    ----------
    exclude : sequence of str
        Attribute paths that are not state, from the strategy on: ``"writer"``, ``"strategy.cache"``.
    private : bool
        Never put random generators back: under differential privacy no noise may be drawn twice.
    """

    def __init__(self, *, exclude: Sequence[str] = (), private: bool = False) -> None:
        self._excluded = frozenset(f"strategy.{path}" for path in exclude)
        self._private = private
        self._own = OwnPackages()
        self._pool = BufferPool()
        self._digests = _Digests()
        self._flat = FlatRoots()
        self._anchors: dict[int, str] = {}
        self._anchored: dict[str, object] = {}  # held, so that no other object gets the same id()
        self._baseline: Encoded | None = None
        self._inventory: tuple[str, ...] | None = None
        self._warned: set[str] = set()

    def take_baseline(self, roots: Roots) -> None:
        """Note what stands at the first hook of this process, before anything is put back.

        Raises
        ------
        CheckpointError
            If a ``state_dict`` holds what cannot be stored, or a plain container contains itself.
        """
        if "strategy" in roots:
            self._own.add(type(roots["strategy"]))
        self._walk(roots, Sharing())  # finds nested strategies, whose packages are the strategy's own too
        self._digests.remember = True
        self._baseline = self._walk(roots, Sharing())
        self._digests.remember = False
        self._anchored = self._baseline.objects
        self._anchors = {id(value): identity for identity, value in self._anchored.items()}

    def capture(self, roots: Roots) -> Snapshot:
        """Take the state as it is now: plain values copied into the tree, arrays into memory of their own.

        Raises
        ------
        CheckpointError
            As `take_baseline`.
        """
        baseline = self._baseline or self._taken_baseline()
        flat = _flat(roots)
        if self._inventory is not None and (known := self._flat.again(flat)) is not None:
            return Snapshot(known, baseline.tree, (), nothing, (), self._inventory, ())
        collector = BlobCollector(self._pool)
        sharing = Sharing()
        found = self._walk(roots, sharing, collector)
        sharing.settle(collector)
        blobs, release = collector.finish()
        if self._inventory is None:
            idle = self._excluded - baseline.excluded - found.excluded
            self._inventory = tuple(inventory(Tree(found.tree), blobs, found.opaque, sorted(idle)))
        problems = tuple(self._problems(found, baseline))
        warnings = tuple(self._warnings(found, baseline))
        self._flat.remember(flat, None if blobs or problems else found)
        return Snapshot(found.tree, baseline.tree, blobs, release, problems, self._inventory, warnings)

    def restore(self, roots: Roots, stored: StoredState) -> list[str]:
        """Put stored state back into the live objects.

        Returns
        -------
        list of str
            Warnings: what was not put back because the user gave another value, with both values.

        Raises
        ------
        CheckpointError
            If there is state for an object that is not there, or a ``load_state_dict`` fails.
        CheckpointCorruptError
            If what is stored is no state.
        """
        now = Tree(self._taken_baseline().tree)
        three = Three(sound_tree(stored.tree), sound_tree(stored.baseline), now)
        try:
            return self._put_back(roots, three, stored.read)
        except CheckpointError:
            raise
        except Exception as error:  # what is stored may be anything, and make whatever it is handed to raise anything
            raise CheckpointCorruptError(f"the stored state cannot be put back ({error!r:.200})") from error

    def _put_back(self, roots: Roots, three: Three, read: Mapping[str, Buffer]) -> list[str]:
        sharing = Sharing()
        live = self._walk(roots, sharing)
        live_tree = Tree(live.tree)
        objects, arrays = LiveObjects(live_tree, live.objects), ArrayDecoder(read)
        links = Links(three.stored)
        links.keep_live(arrays, LiveArrays(live_tree, sharing.arrays()), objects)
        restorer = Restorer(
            three, live=objects, own=self._own, arrays=arrays, excluded=self._excluded, private=self._private
        )
        restorer.run(_flat(roots))
        return [*three.warnings, *links.broken(self._live_arrays(roots))]

    def _live_arrays(self, roots: Roots) -> LiveArrays:
        sharing = Sharing()
        return LiveArrays(Tree(self._walk(roots, sharing).tree), sharing.arrays())

    def differences(self, roots: Roots, stored: StoredState) -> list[str]:
        """The numbers and booleans among the strategy's plain attributes that are given differently now.

        Returns
        -------
        list of str
            ``"strategy.eta: 0.01 there, 0.02 here"``.
        """
        then, now = sound_tree(stored.baseline), Tree(self._taken_baseline().tree)
        return [
            f"{identity}.{name}: {short(then, before)} there, {short(now, given)} here"
            for identity, node in now.by_id.items()
            if node["$"] == "object" and identity.partition(".")[0] == "strategy"
            for name, given in node["v"].items()
            if (before := _attribute(then, identity, name)) is not MISSING
            and _is_number(given)
            and _is_number(before)
            and not alike(given, now, before, then)
        ]

    def _taken_baseline(self) -> Encoded:
        if self._baseline is None:
            raise RuntimeError("take_baseline() has to be called at the first hook, before anything else")
        return self._baseline

    def _walk(self, roots: Roots, sharing: Sharing, collector: BlobCollector | None = None) -> Encoded:
        arrays = ArrayEncoder(collector, sharing, self._digests)
        return Encoder(self._own, self._anchors, self._excluded, arrays).encode(_flat(roots))

    def _warnings(self, found: Encoded, baseline: Encoded) -> Iterator[str]:
        """What cannot be put back into a process that begins as this one did; each path once."""
        for path, value in found.unseen.items():
            before = baseline.unseen.get(path)
            known = baseline.opaque.get(path)
            if before is None or before is value or callable(value) or path in self._warned or known is None:
                continue
            if (known.kind, known.name) == (found.opaque[path].kind, found.opaque[path].name):
                self._warned.add(path)
                yield (
                    f"{path} is another {known} than at the start, and is not kept: a resumed run begins with the one "
                    f"it is given then. Ways on: {_ways(path)}"
                )
        late = set(found.objects) - set(baseline.objects) - self._warned
        if late:
            self._warned |= late
            nodes = Tree(found.tree).by_id
            yield from (
                f"{path} is a {nodes[path]['type']} that was built after the start: a resumed run can put its state "
                "back only if it is there by then; build it in __init__"
                for path in sorted(late)
                if nodes[path]["$"] in OBJECT_KINDS and not nodes[path].get("value")
            )

    def _problems(self, found: Encoded, baseline: Encoded) -> Iterator[str]:
        torn = dict(_torn(found, baseline))
        told = set(torn)
        for now, before in ((found.opaque, baseline.opaque), (found.needed, baseline.needed)):
            for path, thing in now.items():
                known = before.get(path)
                if known is not None and (known.kind, known.name) == (thing.kind, thing.name):
                    continue
                if thing.whole in told:  # a list of a hundred clients is one thing to say
                    continue
                told.add(thing.whole or path)
                yield _problem(path, thing, known) if not thing.whole else _holds(path, thing)
        yield from torn.values()


def _torn(found: Encoded, baseline: Encoded) -> Iterator[tuple[str, str]]:
    """Lists, by path, that have changed and cannot be put back, because they hold what cannot be stored."""
    inside = {thing.whole: (path, thing) for path, thing in (found.opaque | found.needed).items() if thing.whole}
    if not inside:
        return
    now, then = Tree(found.tree), Tree(baseline.tree)
    before = _sequences(then)
    for whole, node in _sequences(now).items():
        if whole not in inside or whole not in before or alike(node, now, before[whole], then):
            continue
        yield whole, _holds(*inside[whole])


def _sequences(tree: Tree) -> dict[str, Node]:
    return {str(path): node for path, node, _ in places(tree) if node["$"] in SEQUENCE_KINDS}


class _Digests:
    """Knows the large ``bytes`` of the baseline, by identity; holding them keeps their ``id()`` theirs."""

    def __init__(self) -> None:
        self.remember = False
        self._known: dict[int, tuple[bytes, str]] = {}

    def of(self, data: bytes) -> str | None:
        if self.remember and id(data) not in self._known:
            self._known[id(data)] = (data, digest_of(data))
        known = self._known.get(id(data))
        return None if known is None else known[1]


def _flat(roots: Roots) -> Roots:
    """Each extra object is a root of its own."""
    if "extra" not in roots:
        return roots
    flat = {name: value for name, value in roots.items() if name != "extra"}
    return flat | {f"extra.{name}": value for name, value in (roots.get("extra") or {}).items()}


def _attribute(tree: Tree, identity: str, name: str) -> Node:
    node = tree.by_id.get(identity)
    return node["v"].get(name, MISSING) if node is not None and node["$"] == "object" else MISSING


def _is_number(node: Node) -> bool:
    return type(node) in (bool, int, float) or kind_of(node) in ("float", "int", "numpy")


def _problem(path: str, thing: Opaque, before: Opaque | None) -> str:
    was = f", where a {before} was" if before is not None else ""
    factory = "build it in __init__, or give it a factory such as list, or a function of the strategy's module; else "
    ways = f"{factory if thing.kind == 'collections:defaultdict' else ''}{_ways(path)}"
    return f"{path}: became a {thing}, which cannot be stored{was}. Ways on: {ways}"


def _holds(path: str, thing: Opaque) -> str:
    return (
        f"{thing.whole}: changed, and cannot be stored, because it holds a {thing} ({path}). "
        f"Ways on: {_ways(thing.whole)}, or keep the two apart"
    )


def _ways(path: str) -> str:
    ways = "give it state_dict() and load_state_dict(), or pass an object that has them as extra_state="
    root, _, attribute = path.partition(".")
    return f"exclude=({attribute!r},) if it is no state; else {ways}" if root == "strategy" else ways
