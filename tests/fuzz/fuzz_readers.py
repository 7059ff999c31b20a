"""Bytes that follow the coverage of the readers: `make fuzz`, or this file with the options of libFuzzer.

Every reader of what lies on a disk gets them, sealed with a right digest where there is one. It may answer, or raise an
error of ours; anything else ends the run, and the input that did it lies in a file ``crash-…``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["flwr_ckpt"]):
    from flwr_ckpt.state import StateRecorder, StoredState
    from flwr_ckpt.store import CheckpointError, RunReader, locate
    from flwr_ckpt.store.format.array_types import array_type, is_shape, npy_type, plain_dtype
    from flwr_ckpt.store.format.manifest import decode, outcome_from_json, seal
    from flwr_ckpt.store.format.npy import parse_header, split_npy
    from flwr_ckpt.store.names import generation_of, parse_data, parse_manifest, parse_segment
    from flwr_ckpt.store.reading.view import view_state
    from flwr_ckpt.store.values import from_json

from tests.lab.hostile import VALUES, look_everywhere, places_in, replaced
from tests.lab.small_run import SmallRun, strategy

logging.disable(logging.CRITICAL)
RUN = SmallRun(Path(tempfile.mkdtemp(prefix="flwr-ckpt-fuzz-")) / "run")


def fuzz_manifest(data: atheris.FuzzedDataProvider) -> None:
    """A manifest with values of anybody's in places of its own."""
    body = _changed(RUN.body, data)
    with contextlib.suppress(CheckpointError):
        decode(seal(body), "fuzzed")


def fuzz_run(data: atheris.FuzzedDataProvider) -> None:
    """The same in a run that is read in every way."""
    RUN.newest.write_bytes(seal(_changed(RUN.body, data)))
    look_everywhere(RUN.path)


def fuzz_text(data: atheris.FuzzedDataProvider) -> None:
    """A body that may not even be JSON."""
    with contextlib.suppress(CheckpointError):
        decode(RUN.frame(data.ConsumeBytes(1 << 16)), "fuzzed")


def fuzz_bytes(data: atheris.FuzzedDataProvider) -> None:
    """A manifest without a digest that is right, and a run of which it is the newest."""
    RUN.newest.write_bytes(data.ConsumeBytes(1 << 16))
    assert RunReader(locate(RUN.path)).resume(strict_history=False) is not None, "the round before is sound"


def fuzz_header(data: atheris.FuzzedDataProvider) -> None:
    """The header of a ``.npy`` file."""
    text = data.ConsumeBytes(1 << 13)
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(4, "little")[:2] + text
    parse_header(header)
    found = npy_type(header)
    assert found is None or (is_shape(found[1], found[0].itemsize) and not found[0].hasobject)
    split_npy(header)
    split_npy(text)
    array_type(text)
    plain_dtype(text.decode("latin-1"))


def fuzz_values(data: atheris.FuzzedDataProvider) -> None:
    """Stored values, outcomes and trees of state that anybody's JSON says."""
    try:
        document = json.loads(data.ConsumeUnicodeNoSurrogates(1 << 14))
    except (ValueError, RecursionError):
        return
    for read in (from_json, outcome_from_json):
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            read(document)
    _restored(document)


def fuzz_state(data: atheris.FuzzedDataProvider) -> None:
    """A tree of a real strategy's state with values of anybody's."""
    tree = _changed(RUN.state.tree, data)
    _restored(tree)
    with contextlib.suppress(Exception):  # it raises anything; what it is called by says so in an error of ours
        view_state(tree, lambda name: None, lambda name: memoryview(b""))  # type: ignore[arg-type, return-value]


def fuzz_names(data: atheris.FuzzedDataProvider) -> None:
    """No name that counts leads out of a folder."""
    key = data.ConsumeUnicode(200)
    if any(parse(key) is not None for parse in (parse_manifest, parse_data, parse_segment, generation_of)):
        assert ".." not in key.split("/")
        assert not key.startswith("/")
        assert key.count("/") == 1
        assert key.isascii()
    with contextlib.suppress(ValueError):
        assert ".." not in locate(key, "/home").where.split("/") or key.startswith("/")


TARGETS = (
    *(fuzz_manifest, fuzz_manifest, fuzz_run, fuzz_text, fuzz_bytes),
    *(fuzz_header, fuzz_values, fuzz_state, fuzz_state, fuzz_names),
)


def _changed(document: Any, data: atheris.FuzzedDataProvider) -> Any:
    for _ in range(data.ConsumeIntInRange(1, 3)):
        places = list(places_in(document))
        where = places[data.ConsumeIntInRange(0, len(places) - 1)]
        document = replaced(document, where, _value(data))
    return document


def _value(data: atheris.FuzzedDataProvider) -> Any:
    kind = data.ConsumeIntInRange(0, 3)
    if kind == 0:
        return data.ConsumeInt(8)
    if kind == 1:
        return data.ConsumeUnicodeNoSurrogates(40)
    return VALUES[data.ConsumeIntInRange(0, len(VALUES) - 1)]


def _restored(tree: Any) -> None:
    recorder = StateRecorder()
    roots = {"strategy": strategy()}
    recorder.take_baseline(roots)
    with contextlib.suppress(CheckpointError):
        recorder.restore(roots, StoredState(tree, RUN.state.baseline, RUN.state.read))


def fuzz_one(data: bytes) -> None:
    """One input, for the reader that its first byte says."""
    provider = atheris.FuzzedDataProvider(data)
    TARGETS[provider.ConsumeIntInRange(0, len(TARGETS) - 1)](provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
