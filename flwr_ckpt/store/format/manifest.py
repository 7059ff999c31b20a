"""Manifests as bytes, and back without believing a word of them.

A file is ``{"sha256":"<digest of the body>","body":<body>}`` and a line feed, whatever the version of the format: so
a newer version is told from damage, and ``"format"`` in the body is believed only under a matching digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from ..draft import Outcome, Phase
from ..errors import CheckpointCorruptError, CheckpointError, FormatVersionError
from ..names import parse_data, parse_segment
from ..values import Json, from_json, require, to_json, typed
from .npy import LONGEST_HEADER
from .records import Chunk, Commit, DataFile, Entry, Extent, Parent, Place, Segment, Span

FORMAT = 1
# What a manifest may be at most: half a million arrays fit, and a hostile one cannot fill the memory (its lists and
# objects take up to fifty times the room of their brackets).
LARGEST = 1 << 27  # bytes
MOST_PARTS = 1 << 22  # brackets

_BEGIN, _MIDDLE, _END = b'{"sha256":"', b'","body":', b"}\n"
_BODY = len(_BEGIN) + 64 + len(_MIDDLE)
_LIMIT = 1 << 62
_T = TypeVar("_T")
_string = json.encoder.encode_basestring_ascii


def seal(body: Json) -> bytes:
    """Write a document with its own digest."""
    return _sealed(_text(body).encode("ascii"))


def unseal(data: bytes, path: str) -> dict[str, Json]:
    """Read what `seal` wrote.

    Raises
    ------
    CheckpointCorruptError
        If it is not exactly that.
    FormatVersionError
        If it is sound and of a newer version.
    """
    body = data[_BODY : -len(_END)]
    framed = data.startswith(_BEGIN) and data[_BODY - len(_MIDDLE) : _BODY] == _MIDDLE and data.endswith(_END)
    if not framed or data[len(_BEGIN) : _BODY - len(_MIDDLE)] != hashlib.sha256(body).hexdigest().encode():
        raise CheckpointCorruptError(f"{path}: its {len(data)} bytes do not match the digest that they state")
    if not _is_modest(body):
        raise CheckpointCorruptError(f"{path}: larger than any manifest, or with more lists and objects than any has")
    document = _parse(lambda: json.loads(body, parse_constant=_no_constant), path)
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise CheckpointCorruptError(f'{path}: expected a JSON object with a number "format"')
    if document["format"] > FORMAT:
        raise FormatVersionError(
            f"{path} has format version {document['format']}; this version of flwr-ckpt reads up to {FORMAT}. "
            "Upgrade flwr-ckpt to go on with this run; nothing has been touched"
        )
    return document


def encode(commit: Commit, outcomes: Iterable[str]) -> bytes:
    """Write a commit as a manifest.

    Parameters
    ----------
    commit : Commit
    outcomes : iterable of str
        Its outcomes, as `outcome_text` gives them: most were in the manifest before.

    Raises
    ------
    CheckpointError
        If nobody could read it, because it states too much.
    """
    table = {file.key: index for index, file in enumerate(commit.files)}
    headers: dict[bytes, int] = {}
    parent = commit.parent
    members = {
        "format": _text(FORMAT),
        "token": _text(commit.token),
        "generation": _text(commit.generation),
        "sequence": _text(commit.sequence),
        "round": _text(commit.round),
        "phase": _text(commit.phase),
        "time": _text(commit.time),
        "parent": _text(parent and [parent.generation, parent.sequence, parent.round, parent.phase]),
        "line": _text([[span.generation, span.first, span.last, span.sequence] for span in commit.line]),
        "passed": _text([[extent.generation, extent.first, extent.last] for extent in commit.passed]),
        "files": _text([_file_to_json(file) for file in commit.files]),
        "arrays": _entries_text(commit.arrays, table, headers),
        "state": _entries_text(commit.state, table, headers),
        "stored_documents": _entries_text(commit.stored_documents, table, headers),
        "headers": _text([header.decode("latin-1") for header in headers]),
        "documents": _text(dict(commit.inline_documents)),
        "outcomes": f"[{','.join(outcomes)}]",
        "segments": _text([[one.key, one.size, one.digest, one.first, one.last] for one in commit.segments]),
    }
    body = ",".join([f'"{name}":{text}' for name, text in members.items()])
    data = _sealed(f"{{{body}}}".encode("ascii"))
    if not _is_modest(data):
        raise CheckpointError(
            f"{commit.path} would have {len(data)} bytes for {sum(1 for _ in commit.entries())} arrays, which is more "
            "than a manifest may have; keep fewer and larger arrays, or leave some out with exclude="
        )
    return data


def decode(data: bytes, path: str) -> Commit:
    """Read a manifest.

    Raises
    ------
    CheckpointCorruptError
        If it does not match its digest, or states what no manifest can.
    FormatVersionError
        If it is sound and of a newer version.
    """
    body = unseal(data, path)
    return _parse(lambda: _commit(body, path), path)


def outcome_text(outcome: Outcome) -> str:
    """Encode an outcome, on one line."""
    return _text(
        {
            "round": outcome.round,
            "phase": outcome.phase,
            "answered": outcome.answered,
            "metrics": None if outcome.metrics is None else to_json(dict(outcome.metrics)),
            "loss": to_json(outcome.loss),
            "detail": to_json(dict(outcome.detail)),
        }
    )


def outcome_from_json(value: Json) -> Outcome:
    """Decode an outcome.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it is none.
    """
    record = typed(value, dict)
    metrics, detail = from_json(record["metrics"]), from_json(record["detail"])
    loss = from_json(record["loss"])
    if not (metrics is None or isinstance(metrics, dict)) or not isinstance(detail, dict):
        raise ValueError("metrics and detail of an outcome are objects")
    return Outcome(
        round=_count(record["round"]),
        phase=_phase(record["phase"]),
        answered=typed(record["answered"], bool),
        metrics=metrics,
        loss=loss,
        detail=detail,
    )


def _parse(read: Callable[[], _T], path: str) -> _T:
    try:
        return read()
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as error:
        raise CheckpointCorruptError(f"{path}: not a manifest of this format: {error!r:.200}") from error


def _is_modest(data: bytes) -> bool:
    return len(data) <= LARGEST and data.count(b"[") + data.count(b"{") <= MOST_PARTS


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _text(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _sealed(body: bytes) -> bytes:
    return b"".join((_BEGIN, hashlib.sha256(body).hexdigest().encode(), _MIDDLE, body, _END))


def _entries_text(entries: Iterable[Entry], table: Mapping[str, int], headers: dict[bytes, int]) -> str:
    return f"[{','.join([_entry_text(entry, table, headers) for entry in entries])}]"


def _entry_text(entry: Entry, table: Mapping[str, int], headers: dict[bytes, int]) -> str:
    """Write an entry; by hand, because there may be 10,000 of them in a commit, and a few commits in a round."""
    name, kind, dtype, shape, stype, header, size, crc, places = entry
    lengths = ",".join([f"{length:d}" for length in shape])
    where = ",".join([f"[{table[place.file]},{place.offset}]" for place in places])
    behind = f',"header":{headers.setdefault(header, len(headers))}' if header else ""
    return (
        f'{{"name":{_string(name)},"kind":"{kind}","dtype":{_string(dtype)},"shape":[{lengths}],'
        f'"stype":{_string(stype)},"size":{size},"crc":{crc},"places":[{where}]{behind}}}'
    )


def _file_to_json(file: DataFile) -> Json:
    return [file.key, file.size, file.head.size, file.head.crc, [[one.offset, one.size, one.crc] for one in file.dead]]


def _commit(body: Mapping[str, Json], path: str) -> Commit:
    files = tuple(map(_file, typed(body["files"], list)))
    headers = [typed(text, str).encode("latin-1") for text in typed(body["headers"], list)]
    require(len({file.key for file in files}) == len(files), "a file twice")
    require(all(len(header) <= LONGEST_HEADER for header in headers), "a header longer than any")
    tables = _Tables(files, headers)
    commit = Commit(
        path=path,
        token=typed(body["token"], str),
        generation=_count(body["generation"]),
        sequence=_count(body["sequence"]),
        round=_count(body["round"]),
        phase=_phase(body["phase"]),
        time=_number(body["time"]),
        parent=None if body["parent"] is None else _parent(body["parent"]),
        line=tuple(Span(*_counts(item, 4)) for item in typed(body["line"], list)),
        files=files,
        arrays=_entries(body["arrays"], tables),
        state=_entries(body["state"], tables),
        stored_documents=_entries(body["stored_documents"], tables),
        inline_documents=typed(body["documents"], dict),
        outcomes=tuple(map(outcome_from_json, typed(body["outcomes"], list))),
        segments=tuple(map(_segment, typed(body["segments"], list))),
        passed=tuple(Extent(*_counts(item, 3)) for item in typed(body["passed"], list)),
    )
    _require_apart(commit)
    require(bool(commit.line), "a line without a commit")
    last = commit.line[-1]
    own = (commit.generation, commit.round, commit.sequence)
    require((last.generation, last.last, last.sequence) == own, f"a line that ends elsewhere: {last}")
    generations = [span.generation for span in commit.line]
    require(generations == sorted(set(generations)), f"a line whose generations do not grow: {generations[:9]}")
    return commit


def _require_apart(commit: Commit) -> None:
    """Two arrays may lie at one place, but not across each other: all would be read, and more than there is."""
    stretches = {
        file.key: {(0, file.head.size), *((one.offset, one.size) for one in file.dead)} for file in commit.files
    }
    for entry in commit.entries():
        for place in entry.places:
            stretches[place.file].add((place.offset, entry.size))
    for key, found in stretches.items():
        end = 0
        for offset, size in sorted(found):
            if offset < end:
                raise ValueError(f"it states bytes {offset}+{size} of {key} twice")
            end = offset + size


@dataclass(frozen=True, slots=True)
class _Tables:
    files: tuple[DataFile, ...]
    headers: list[bytes]


def _entries(value: Json, tables: _Tables) -> tuple[Entry, ...]:
    entries = tuple([_entry(typed(item, dict), tables) for item in typed(value, list)])
    require(len({entry.name for entry in entries}) == len(entries), "two entries of one name")
    return entries


def _entry(record: Mapping[str, Json], tables: _Tables) -> Entry:
    """Read an entry. There may be 10,000 of them: no message is made that nobody will see."""
    size = _count(record["size"])
    places = tuple([_place(item, size, tables) for item in typed(record["places"], list)])
    if len(places) not in ((1, 2) if size else (0,)):
        raise ValueError(f"it states {len(places)} places for {size} bytes")
    kind = record["kind"]
    if kind not in ("npy", "raw"):
        raise ValueError(f"it states kind {kind!r:.40}")
    return Entry(
        name=typed(record["name"], str),
        kind=kind,
        dtype=typed(record["dtype"], str),
        shape=tuple([typed(item, int) for item in typed(record["shape"], list)]),  # as stated, by a client perhaps
        stype=typed(record["stype"], str),
        header=tables.headers[_count(record["header"])] if "header" in record else b"",
        size=size,
        crc=_count(record["crc"]),
        places=places,
    )


def _place(value: Json, size: int, tables: _Tables) -> Place:
    index, offset = _counts(value, 2)
    file = tables.files[index]
    if not file.head.size <= offset <= file.size - size:
        raise ValueError(f"it states bytes {offset}+{size} of {file.key}")
    return Place(file.key, offset)


def _file(value: Json) -> DataFile:
    key, size, head_size, head_crc, dead = typed(value, list)
    require(parse_data(typed(key, str)) is not None, f"the file name {key!r:.80}")
    chunks = tuple(Chunk(*_counts(item, 3)) for item in typed(dead, list))
    require(all(chunk.offset + chunk.size <= _count(size) for chunk in chunks), f"a chunk beyond the end of {key}")
    return DataFile(key, _count(size), Chunk(0, _count(head_size), _count(head_crc)), chunks)


def _segment(value: Json) -> Segment:
    key, size, digest, first, last = typed(value, list)
    require(parse_segment(typed(key, str)) is not None, f"the file name {key!r:.80}")
    return Segment(key, _count(size), typed(digest, str), _count(first), _count(last))


def _parent(value: Json) -> Parent:
    generation, sequence, server_round, phase = typed(value, list)
    return Parent(_count(generation), _count(sequence), _count(server_round), _phase(phase))


def _phase(value: Json) -> Phase:
    require(value in get_args(Phase), f"the phase {value!r:.40}")
    phase: Phase = value
    return phase


def _count(value: Json) -> int:
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise ValueError(f"it states the number {value!r:.40}")
    return value


def _counts(value: Json, length: int) -> list[int]:
    items = typed(value, list)
    if len(items) != length:
        raise ValueError(f"it states {len(items)} numbers instead of {length}")
    return [_count(item) for item in items]


def _number(value: Json) -> float:
    require(type(value) in (int, float) and math.isfinite(value), f"the number {value!r:.40}")
    return float(value)
