"""A commit's files under names of another generation, so that no older server has a say about them."""

from __future__ import annotations

from dataclasses import replace

from ..format.records import Commit, Entry, Segment
from ..names import HISTORY, data_key, parse_data, parse_segment, segment_key, unique
from ..places.files import Files
from .assembly import Tables


def link_files(
    files: Files, commit: Commit, generation: int, source_files: Files
) -> tuple[Tables, tuple[Segment, ...]]:
    """Give every file that a commit refers to a name of `generation`, in the commit's own round.

    Parameters
    ----------
    source_files : Files
        Where they lie: in the same run, or in another one.

    Returns
    -------
    tables : Tables
        Those of the commit, by the new names.
    segments : tuple of Segment

    Raises
    ------
    FileNotFoundError
        If a file is gone.
    """
    names = _new_names(commit, generation)
    if commit.segments:
        files.make_folder(HISTORY)
    for source, target in names.items():
        files.adopt(source_files, source, target)
    for folder in sorted({target.rpartition("/")[0] for target in names.values()}):
        files.sync_folder(folder)
    tables = Tables(
        tuple(replace(file, key=names[file.key]) for file in commit.files),
        _moved(commit.arrays, names),
        _moved(commit.state, names),
        _moved(commit.stored_documents, names),
        commit.inline_documents,
    )
    return tables, tuple(replace(segment, key=names[segment.key]) for segment in commit.segments)


def _new_names(commit: Commit, generation: int) -> dict[str, str]:
    names: dict[str, str] = {}
    labels: set[str] = set()
    for file in commit.files:
        name = parse_data(file.key)
        label = unique(name.label if name else "data", labels)
        labels.add(label)
        names[file.key] = data_key(commit.round, generation, label)
    for index, segment in enumerate(commit.segments):
        name = parse_segment(segment.key)
        label = f"{index}-{name.label if name else 'history'}"
        names[segment.key] = segment_key(commit.round, generation, label)
    return names


def _moved(entries: tuple[Entry, ...], names: dict[str, str]) -> tuple[Entry, ...]:
    return tuple(
        entry._replace(places=tuple(place._replace(file=names[place.file]) for place in entry.places))
        for entry in entries
    )
