"""Putting stored state back into live objects, leaf by leaf.

Three trees decide: what is stored (T), the baseline of the process that stored it (B), and the baseline of this one
(N). Arrays, tensors and generators are state whatever they were; a plain value is put back if the run has changed it
(T is not B) and the user has not (N is B). Objects are never replaced by copies: their attributes are put back into
the ones that are there.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from flwr_ckpt.store.errors import CheckpointError

from . import generators
from .array_decode import ArrayDecoder
from .arrays import ARRAY_KINDS
from .classes import OwnPackages
from .compare import has_changed
from .decode import Decoder, NotStateError
from .leaves import Node
from .links import loads_in_place
from .live import LiveObjects
from .objects import new_instance
from .paths import Path
from .places import (
    KEEP,
    Attributes,
    Items,
    copy_into,
    is_like,
    is_same_leaf,
    mapping_kind,
    refill,
    replace_content,
    with_items,
)
from .three import Entries, Three, content_of, named, type_of, value_of
from .tree import MAPPING_KINDS, MISSING, NOT_STATE_KINDS, OBJECT_KINDS, holds_state, kind_of


class Restorer:
    """One restore: used once.

    Parameters
    ----------
    three : Three
    live : LiveObjects
    own : OwnPackages
    arrays : ArrayDecoder
    excluded : frozenset of str
        Paths that are not state.
    private : bool
        Leave generators as they are.
    """

    def __init__(
        self,
        three: Three,
        *,
        live: LiveObjects,
        own: OwnPackages,
        arrays: ArrayDecoder,
        excluded: frozenset[str],
        private: bool,
    ) -> None:
        self._three = three
        self._stored = three.stored
        self._live = live
        self._arrays = arrays
        self._own = own
        self._excluded = excluded
        self._private = private
        self._decoder = Decoder(three.stored, arrays, own, self._live_for)
        self._made = self._decoder.made
        self._filled: dict[int, Any] = {}  # live containers and tensors already put back, kept alive
        self._work: collections.deque[Callable[[], None]] = collections.deque()
        self._loads: list[tuple[Any, Node, Path]] = []
        self._path = Path.root("")

    def run(self, roots: Mapping[str, object]) -> None:
        for name, node in self._stored.roots.items():
            self._root(name, node, roots.get(name))
            while self._work:
                self._work.popleft()()
        for live, node, path in self._loads:
            self._load(live, node, path)

    # -- roots and objects ---------------------------------------------------------------------------------------

    def _root(self, name: str, node: Node, live: object) -> None:
        node, path = self._stored.follow(node), Path.root(name)
        if kind_of(node) == "same" or node is None:
            return
        if live is None:
            if name.startswith("extra."):
                raise CheckpointError(
                    f"{path}: the checkpoint holds its state, and extra_state has no {name[6:]!r} now; "
                    "give it, or start another run"
                )
            return
        then, now = self._three.then.roots.get(name, MISSING), self._three.now.roots.get(name, MISSING)
        if kind_of(node) in OBJECT_KINDS:
            self._adopt(node, live, path)
        elif kind_of(node) in MAPPING_KINDS:
            self._merge(Items(live), *self._items(node, then, now), path)

    def _live_for(self, node: dict[str, Any], state: Any) -> Any:
        """Give the decoder the live object for a node, and see to it that its state is put back too."""
        found = self._live.find(node, self._stored)
        if node["$"] == "generator":
            return self._generator(node, found, state)
        if node["id"] in self._made:
            return self._made[node["id"]]
        new = found is MISSING
        if new:
            found = self._new_object(node)
        self._adopt(node, found, self._path, new=new)
        return found

    def _generator(self, node: dict[str, Any], found: Any, state: Any) -> Any:
        if self._private:
            if found is MISSING:
                raise NotStateError("a generator, of which nothing is put back under differential privacy")
            return found
        return generators.put_back(found, node["kind"], state)

    def _new_object(self, node: dict[str, Any]) -> Any:
        cls = self._own.rebuilt_class(node["type"])
        if cls is None:
            raise CheckpointError(self._not_there(node))
        return new_instance(cls)

    def _not_there(self, node: dict[str, Any]) -> str:
        name = node["type"].rpartition(":")[2]
        where = node.get("at", node["id"])
        return (
            f"{where}: the checkpoint holds the state of a {name} here, and there is none now. Build it in __init__ "
            "(what a hook of round 1 builds is not there when a run resumes), or name it in exclude= if it is no state"
        )

    def _adopt(self, node: dict[str, Any], live: Any, path: Path, *, new: bool = False) -> None:
        """Queue what is stored for an object; a new one gets all of it."""
        self._made[node["id"]] = live
        if node["$"] == "stateful":
            self._loads.append((live, node["v"], path))
            return
        now = None if new else self._three.counterpart(self._three.now, node)
        # an object that was made after the baseline had none: its values of now are nobody's wish
        then = None if new else self._three.counterpart(self._three.then, node) or now
        self._work.append(lambda: self._merge_object(live, node, then, now, path))
        if "state_dict" in node:
            self._loads.append((live, node["state_dict"], path))

    def _merge_object(
        self,
        live: Any,
        node: dict[str, Any],
        then: dict[str, Any] | None,
        now: dict[str, Any] | None,
        path: Path,
    ) -> None:
        self._merge(Attributes(live), named(node), named(then), named(now), path)
        if "content" not in node:
            return
        content, before, given = (content_of(part) for part in (node, then, now))
        if kind_of(self._stored.follow(content)) in MAPPING_KINDS:
            self._merge(Items(live), *self._items(content, before, given), path)
        else:
            value = self._whole(content, before, given, MISSING, path)
            if value is not KEEP:
                replace_content(live, value)

    # -- places --------------------------------------------------------------------------------------------------

    def _items(self, node: Node, then: Node, now: Node) -> tuple[Entries, Entries, Entries]:
        return self._three.items(node, then, now, self._decoder.key)

    def _merge(self, place: Attributes | Items, stored: Entries, then: Entries, now: Entries, path: Path) -> None:
        for token, (key, node) in stored.items():
            where = place.path(path, key)
            if self._is_excluded(where):
                continue
            value = self._slot(node, value_of(then, token), value_of(now, token), place.get(key), where)
            if value is not KEEP:
                place.set(key, value)
        for token, (key, node) in then.items():
            where = place.path(path, key)
            if token not in stored and not self._is_excluded(where):
                self._remove(place, key, node, value_of(now, token), where)
        place.arrange(key for key, _ in stored.values())

    def _is_excluded(self, path: Path) -> bool:
        return bool(self._excluded) and str(path) in self._excluded

    def _remove(self, place: Attributes | Items, key: Any, then: Node, now: Node, path: Path) -> None:
        """What the run had taken away is taken away again, unless the user has put something else there."""
        if now is MISSING or place.get(key) is MISSING or kind_of(self._three.then.resolve(then)) in NOT_STATE_KINDS:
            return
        if self._three.is_untouched(then, now):
            place.delete(key)
        else:
            self._three.warn(path, MISSING, then, now)

    def _slot(self, node: Node, then: Node, now: Node, live: Any, path: Path) -> Any:
        """The value to put at `path`, or `KEEP`."""
        self._path = path
        node = self._stored.follow(node)
        if kind_of(node) == "same":
            target = self._stored.resolve(node)
            if node["as"] in self._made and kind_of(target) not in OBJECT_KINDS:
                return self._alias(self._made[node["as"]], target, then, now, live, path)
            node = target
        kind = kind_of(node)
        if kind in NOT_STATE_KINDS:
            return KEEP
        if kind in OBJECT_KINDS:
            return self._reference(node, then, now, live, path)
        if kind in ARRAY_KINDS or kind == "generator":
            value = self._decode_into(node, live, path)
            return KEEP if value is live else value
        if kind in MAPPING_KINDS and mapping_kind(live) == kind and self._claim(live):
            if "id" in node:
                self._made[node["id"]] = live
            self._work.append(lambda: self._merge(Items(live), *self._items(node, then, now), path))
            if "attributes" in node:
                self._work.append(lambda: self._merge(Attributes(live), *self._three.attributes(node, then, now), path))
            return KEEP
        return self._whole(node, then, now, live, path)

    def _claim(self, live: Any) -> bool:
        """Whether nothing has been put into `live` yet: what was two things may be one now, and must not mix."""
        if id(live) in self._filled:
            return False
        self._filled[id(live)] = live
        return True

    def _alias(self, value: Any, node: Node, then: Node, now: Node, live: Any, path: Path) -> Any:
        if value is live:
            return KEEP
        if kind_of(node) in ARRAY_KINDS or self._three.is_ours(node, then, now):
            return value
        self._three.warn(path, node, then, now)
        return KEEP

    def _reference(self, node: dict[str, Any], then: Node, now: Node, live: Any, path: Path) -> Any:
        then_node, now_node = self._three.then.resolve(then), self._three.now.resolve(now)
        same = kind_of(then_node) in OBJECT_KINDS and then_node["id"] == node["id"]
        if node["id"] not in self._made and self._live.find(node, self._stored) is MISSING:
            if self._own.rebuilt_class(node["type"]) is not None:
                return self._whole(node, then, now, live, path)
            if kind_of(now_node) in OBJECT_KINDS and type_of(then_node) == node["type"] != now_node["type"]:
                self._three.warn(path, node, then, now)
                return KEEP
            if same and not has_changed(node, self._stored, self._three.then):
                return KEEP
            raise CheckpointError(self._not_there(node))
        target = self._decoder.decode(node)
        if target is live or same:
            return KEEP
        if self._three.is_ours(node, then, now):
            return target
        self._three.warn(path, node, then, now)
        return KEEP

    def _whole(self, node: Node, then: Node, now: Node, live: Any, path: Path) -> Any:
        """A value that is put back as one, if it is put back."""
        unchanged = self._three.has_come_back(node, then)
        if unchanged and not holds_state(self._stored, node):
            return KEEP
        ours = self._three.is_reached(node, now) if unchanged else self._three.is_ours(node, then, now)
        if not ours:
            self._three.warn(path, node, then, now)
            self._adopt_below(node)
            return KEEP
        try:
            value = self._decode_into(node, MISSING, path)
        except NotStateError as error:
            if unchanged and is_like(live, node):
                return self._each(node, then, now, live, path)
            self._three.warnings.append(f"{path}: not put back, because it holds {error}")
            self._adopt_below(node)
            return KEEP
        if mapping_kind(live) is None and type(live) is type(value) and self._claim(live) and refill(live, value):
            if isinstance(node, dict) and "id" in node:
                self._made[node["id"]] = live
            return KEEP
        return value

    def _each(self, node: Node, then: Node, now: Node, live: Any, path: Path) -> Any:
        """Put back what can be, beside the things in `live` that cannot be made again."""
        before, given = self._three.then.resolve(then)["v"], self._three.now.resolve(now)["v"]
        found = list(live)
        for index, child in enumerate(node["v"]):
            value = self._slot(child, before[index], given[index], found[index], path.index(index))
            found[index] = found[index] if value is KEEP else value
        return with_items(live, found)

    def _adopt_below(self, node: Node) -> None:
        """The objects in a list that stays as the user gave it get their state all the same."""
        for below in self._stored.walk(node):
            if kind_of(below) in OBJECT_KINDS and self._live.find(below, self._stored) is not MISSING:
                self._decoder.decode(below)

    # -- values --------------------------------------------------------------------------------------------------

    def _decode_into(self, node: Node, live: Any, path: Path) -> Any:
        try:
            value = self._decoder.decode(node)
        except NotStateError:
            if kind_of(node) == "generator":
                return live
            raise
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: what is stored cannot be made again: {error}") from error
        if kind_of(node) == "tensor" and is_same_leaf(live, value) and self._claim(live):
            copy_into(live, value)
            if "id" in node:
                self._made[node["id"]] = live
            return live
        return value

    def _load(self, live: Any, node: Node, path: Path) -> None:
        # what shares memory with the module's own is a view of that; what is copied into it must not be
        with self._arrays.apart() if loads_in_place(live) else nullcontext():
            state = self._decode_into(node, MISSING, path.state_dict())
        try:
            live.load_state_dict(state)
        except Exception as error:  # the user's code may raise anything; the path is what finds it
            raise CheckpointError(
                f"{path}: its load_state_dict() raised {type(error).__name__}: {error}. It was made differently when "
                "the state was stored; make it the same way, or start another run"
            ) from error
