"""The order in which the kernel was asked: data, its fsync, the manifest's name, the folder's fsync, then "durable"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import traced
from tests.lab.traced import Call

NUM_ROUNDS = 5
TOLD = re.compile(r'.*"durable (\d+)\\n".*')


class Trace:
    """The calls of one server, by what they are for."""

    def __init__(self, run: Path, calls: list[Call]) -> None:
        self.run = run
        self.calls = calls

    def of(self, *names: str) -> Iterator[Call]:
        return (call for call in self.calls if call.name in names)

    def synced(self, path: str) -> list[Call]:
        return [call for call in self.of("fsync") if call.paths == (path,)]

    def looks(self) -> list[Call]:
        """Listings of the fences: one before a manifest gets its name, one after."""
        return [call for call in self.of("openat") if call.paths == (f"{self.run}/generations",)]

    def links(self, suffix: str) -> list[Call]:
        return [call for call in self.of("link", "linkat") if call.paths[-1].endswith(suffix)]

    def written(self, path: str) -> list[Call]:
        return [call for call in self.of("write", "writev") if call.paths == (path,)]

    def told(self) -> dict[int, Call]:
        found = ((TOLD.fullmatch(call.text), call) for call in self.of("write") if "pipe:" in call.paths[0])
        return {int(match[1]): call for match, call in reversed([*found]) if match}


@pytest.fixture(scope="module", params=["message/InPlace", "legacy/FedAvgM"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Written in the background with a flush each round; and with each commit waited for."""
    reason = traced.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("traced").resolve()
    run = folder / "home" / "run"
    return Trace(run, traced.trace(request.param, run, NUM_ROUNDS, folder / "trace.txt"))


def between(first: Call, among: list[Call], last: Call) -> bool:
    return any(first < call and call < last for call in among)


def test_data_is_on_disk_before_the_manifest_has_its_name(trace: Trace) -> None:
    manifests = trace.links(".manifest")
    assert len(manifests) >= NUM_ROUNDS
    for link in manifests:
        folder = link.paths[-1].rpartition("/")[0]
        for path in {call.paths[0] for call in trace.of("writev") if call.paths[0].startswith(folder)}:
            writes = [call for call in trace.written(path) if call < link]
            if writes:
                assert between(writes[-1], trace.synced(path), link), path
        (temporary,) = (path for path in link.paths if ".tmp-" in path)
        assert between(trace.written(temporary)[-1], trace.synced(temporary), link)


def test_durable_is_said_only_after_the_folder_is_synced_and_the_fences_were_looked_at(
    trace: Trace, record_property: Any
) -> None:
    told = trace.told()
    assert sorted(told) == list(range(NUM_ROUNDS + 1))
    for server_round, said in told.items():
        folder = f"{trace.run}/round-{server_round:08d}"
        links = [link for link in trace.links(".manifest") if link.paths[-1].startswith(folder) and link < said]
        assert links, f"round {server_round} was said to be durable before it had a manifest"
        for link in links:
            (synced, *_) = (call for call in trace.synced(folder) if link < call)
            assert synced < said
            assert between(synced, trace.looks(), said), "the second look"
        assert between(links[0], trace.synced(str(trace.run)), said), "the new folder's own name"
    record_property("counted", ["order of system calls (strace)", {"rounds": len(told), "wrong": 0}])


def test_the_fences_are_looked_at_between_data_and_manifest(trace: Trace) -> None:
    for link in trace.links(".manifest"):
        folder = link.paths[-1].rpartition("/")[0]
        data = [
            call
            for call in trace.of("fsync")
            if call < link and call.paths[0].startswith(folder) and call.paths[0].endswith(".safetensors")
        ]
        temporary = trace.written(next(path for path in link.paths if ".tmp-" in path))[0]
        looks = [look for look in trace.looks() if look < temporary]
        assert looks
        assert not data or data[-1] < looks[-1]


def test_nothing_is_renamed_or_written_twice(trace: Trace) -> None:
    assert not list(trace.of("rename", "renameat", "renameat2"))
    made = [call.paths[0] for call in trace.of("openat") if "O_CREAT" in call.text and str(trace.run) in call.text]
    assert made
    assert len(made) == len(set(made))
    assert all("O_EXCL" in call.text for call in trace.of("openat") if "O_CREAT" in call.text and call.paths[0] in made)


def test_a_generation_is_taken_before_anything_is_written(trace: Trace) -> None:
    (fence,) = trace.links("generations/0001")
    temporary = next(path for path in fence.paths if ".tmp-" in path)
    assert between(trace.written(temporary)[-1], trace.synced(temporary), fence)
    first = min(trace.of("writev"), key=lambda call: call.begun)
    if first.paths[0] == temporary:
        first = next(call for call in trace.of("writev") if call.paths[0] != temporary)
    assert between(fence, trace.synced(f"{trace.run}/generations"), first)
    assert between(fence, trace.synced(str(trace.run)), first)
    for made in trace.of("mkdir", "mkdirat"):
        if made < fence and made.paths[0] in map(str, (trace.run, trace.run.parent)):
            assert between(made, trace.synced(made.paths[0].rpartition("/")[0]), first), "the names of new folders"


def test_retention_takes_a_rounds_manifests_first_and_syncs_before_it_takes_data(trace: Trace) -> None:
    gone = list(trace.of("unlink", "unlinkat"))
    data = [call for call in gone if call.paths[0].endswith(".safetensors")]
    assert data
    for call in data:
        folder = call.paths[0].rpartition("/")[0]
        manifests = [one for one in gone if re.fullmatch(rf"{folder}/g\d+-\w+\.manifest", one.paths[0])]
        assert manifests
        assert between(max(manifests, key=lambda one: one.ended), trace.synced(folder), call)
