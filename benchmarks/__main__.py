"""Measure, print the tables, and write them with a picture to a folder.

``python -m benchmarks report`` does so again from what was measured last; ``python -m benchmarks profile`` prints where
our own time goes.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from . import plan
from .contenders import NAMES
from .profiling import profile
from .report import report
from .results import Results, measure, tell

_PROFILED = 64  # MiB
_RESULTS = Path(__file__).parent / "results"
_PLANS = {"usual": plan.usual, "smoke": plan.smoke, "full": plan.full}


def main() -> None:
    """Read the command line and do what it says."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "results.json"
    if options.command == "profile":
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            text = profile(options.sizes[0] if options.sizes else _PROFILED, Path(folder))
        (options.out / "profile.md").write_text(text)
        print(text)
        return
    if options.command == "run":
        measure(_chosen(options), options.scratch, tell, lambda results: results.save(kept))
    results = Results.load(kept)
    text = report(results)
    (options.out / "README.md").write_text(text)
    print(text)
    if not options.no_picture:
        from .picture import draw

        draw(results, options.out / "comparison.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "report", "profile"), default="run")
    parser.add_argument(
        "--plan", choices=_PLANS, default="usual", help="smoke: a minute; usual: half an hour; full: longer"
    )
    parser.add_argument("--sizes", type=int, nargs="*", metavar="MIB", help="only these of the plan's sizes")
    parser.add_argument("--contenders", nargs="*", choices=NAMES, help="only these")
    parser.add_argument("--cases", nargs="*", metavar="CASE", help="only these of the special cases; none if empty")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where results go")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to be measured"
    )
    parser.add_argument("--no-picture", action="store_true", help="do without matplotlib")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> plan.Plan:
    whole = _PLANS[options.plan]()
    sizes = [size for size in whole.sizes if options.sizes is None or size.mib in options.sizes]
    if options.contenders is not None:
        sizes = [replace(one, contenders=[c for c in one.contenders if c in options.contenders]) for one in sizes]
    cases = {name: task for name, task in whole.cases.items() if options.cases is None or name in options.cases}
    return plan.Plan(whole.name, sizes, cases)


if __name__ == "__main__":
    main()
