"""The tables, in Markdown: the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .contenders import NAMES
from .figures import Figures, aged, case_figures, loop_of, seconds, size
from .markdown import table
from .results import Results
from .targets import PROVED_BY_TESTS, targets

_METHOD = """\
How it is measured. Every contender works inside Flower's own `Strategy.start` of the message API, over clients that do
nothing, with aggregates as Flower's aggregation leaves them (`.npy` bytes, new ones each round). All take turns, each
turn in a process of its own; after every round the same arrays are also written raw (one `writev` and `fsync`), and
ratios are those of a round, their medians shown. Before each of the two writes as much (up to 1 GiB) is written to the
page cache on every processor and dropped again: a virtual machine's free memory is its host's, and to get it back takes
longer than a save. What the process has in memory is touched, too, before each hook and load: what a guest has not used
for some seconds its host puts aside, and whoever runs next waits for it (the case of clients that train for seconds
shows by how much). *Blocked* is the time of the server's loop that is neither the clients' nor the strategy's own, less
what the same loop takes where nothing is saved, with models of the same size. *Durable* runs from the aggregate until
all is synced; what a library does not sync itself is synced for it. *Memory* is the peak of anonymous memory
(`RssAnon`, read by another process every 2 ms in a round that is not timed) beyond what Flower holds; the page cache
does not count. *Disk* is what the round's new files take, against the bytes that changed. *Stalls* is the longest time
for which another Python thread of the process stood still meanwhile. *Resume* is the time until Flower has the arrays
again, from the page cache, against one read of the same bytes into as many new arrays, as in a process that has just
begun; for the other libraries it is loading and conversion, for flwr-ckpt the start of a server up to its first live
hook, everything verified. Nothing is compared before memory and disk have been touched."""


def report(results: Results) -> str:
    """Write everything as one Markdown text."""
    comparison = results.figures()
    reached = targets(comparison, results.cases)
    parts = [
        "# Benchmarks",
        "Made by `make bench`. Raw figures: [`results.json`](results.json).",
        "\n".join(f"- {key}: {value}" for key, value in {**results.machine, "plan": results.plan}.items()),
        "## Numbers to reach",
        table(
            ("what", "target", "measured", ""),
            [
                *((row.what, row.limit, row.measured, row.verdict) for row in reached),
                *((what, "shown by tests", f"`{where}`", "") for what, where in PROVED_BY_TESTS.items()),
            ],
        ),
        "## Against other libraries",
        "![Blocked, durable, memory and disk by contender](comparison.png)",
    ]
    for mib, loop in results.loops().items():
        parts += [f"### {size(mib << 20)} in 100 arrays", _comparison(comparison[mib], loop)]
    parts += ["## Special cases", table(_CASE_HEAD, list(_cases(results.cases))), "## Method", _METHOD]
    return "\n\n".join(parts) + "\n"


def _comparison(by_contender: dict[str, Figures], loop: float) -> str:
    head = (
        "",
        "blocked",
        "durable",
        "raw write beside it",
        "durable ×",
        "memory ×",
        "disk ×",
        "stalls",
        "resume",
        "resume ×",
    )
    rows = [
        (
            NAMES[name],
            seconds(one.blocked),
            seconds(one.durable),
            seconds(one.raw),
            f"{one.durable_ratio:.2f}",
            f"{one.memory_ratio:.2f}",
            f"{one.disk_ratio:.3f}",
            seconds(one.stalled),
            "" if one.load is None else seconds(one.load),
            "" if one.load_ratio is None else f"{one.load_ratio:.2f}",
        )
        for name, one in by_contender.items()
    ]
    return table(head, [("nothing saved: Flower's own loop", seconds(loop), *[""] * 8), *rows])


_CASE_HEAD = ("case", "Flower's own loop", "blocked", "durable", "raw write", "memory", "disk per round", "resume")
_TITLES = {
    "many": "{count:,} arrays of {each}",
    "huge": "one array of {each}",
    "lora": "LoRA: {changed} of {model} change",
    "in_place": "strategy arrays of {state}, changed in place",
    "values": "strategy state of {state_size:,} small Python values",
    "best": "best model beside the run, {model}",
    "waiting": "clients that train for seconds, {model}, no memory touched after",
}


def _cases(cases: dict[str, Any]) -> Iterator[Sequence[str]]:
    for name, result in cases.items():
        task = result["task"]
        if name not in _TITLES:
            early, late, _ = aged(result)
            what = f"{task['rounds']:,} rounds, keep={task['keep']}"
            yield (what, "", "", f"{seconds(early)} at round 10, {seconds(late)} at the last", "", "", "", "")
            continue
        one = case_figures(result, skip=2 if name == "lora" else 0)
        title = _TITLES[name].format(
            count=task["layout"]["count"],
            each=size(task["layout"]["bytes_each"]),
            changed=size(result["changed"]),
            model=size(result["model"]),
            state=size(task["state_size"]),
            state_size=task["state_size"],
        )
        blocked = seconds(one.blocked) + ("" if one.copy_ratio is None else f" ({one.copy_ratio:.2f} × memcpy)")
        load = "" if one.load is None else f"{seconds(one.load)} ({one.load_ratio:.2f} × read)"
        raw = "" if task["state_size"] else seconds(one.raw)
        loop = seconds(loop_of([result["loop"]]))
        yield title, loop, blocked, seconds(one.durable), raw, size(one.memory), size(one.disk), load
