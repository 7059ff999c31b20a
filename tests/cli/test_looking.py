"""`show`, `verify`, `diff` and `plot`: what a round holds, and how it differs from another."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_rig import blob, copied, flip, opened, ran, unfinished, written

from flwr_ckpt import CheckpointStore
from flwr_ckpt.cli.chart import draw
from flwr_ckpt.cli.comparing import relative_norm
from flwr_ckpt.cli.showing import outline, without_cycles
from flwr_ckpt.store import Blob, Draft

# --- show --------------------------------------------------------------------------------------------------------


def test_a_round_is_shown_whole(run: Path) -> None:
    ended = ran("show", "digits", 2)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith("digits, round 2, saved ")
    assert lines[1] == str(run / "round-00000002/g0001-central.manifest")
    assert ["conv.weight", "float64", "(3, 4)", "96 B"] in [line.split("  ") for line in lines]
    assert "2 arrays, 128 B" in lines
    assert "    m_t" in lines
    assert "      conv.weight: float64[3, 4]" in lines
    assert "  app: lab/app" in lines
    assert any(line.startswith("  evaluate/loss: ") for line in lines)


def test_a_round_as_json(run: Path) -> None:
    found = ran("show", "digits", "--json").json()
    assert found["round"] == 3
    assert found["arrays"][0] == {"name": "conv.weight", "dtype": "float64", "shape": [3, 4], "size": 96}
    assert found["state"]["strategy"]["m_t"]["conv.bias"] == {"dtype": "float64", "shape": [4]}
    assert found["identity"]["num_rounds"] == 3
    assert found["metrics"] == CheckpointStore(run).load().metrics


def test_the_best_round_by_a_metric(run: Path) -> None:
    assert ran("show", "digits", "best", "--metric", "central/loss", "--json").json()["round"] == 3
    assert ran("show", "digits", "best", "--metric", "central/round", "--mode", "min", "--json").json()["round"] == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["best"], 2, "best by what? give --metric"),
        (["best", "--metric", "central/round"], 2, "give --mode min or --mode max"),
        (["best", "--metric", "central/loss", "--mode", "low"], 2, "--mode 'low': expected min"),
        (["best", "--metric", "nonesuch/loss"], 2, "no round that is kept has 'nonesuch/loss'; there are central/loss"),
        (["newest"], 2, "'newest': expected a round's number, 'latest' or 'best'"),
        (["7"], 2, "there is no round 7"),
    ],
)
def test_a_round_that_is_not_there_is_one_line(args: list[str], code: int, message: str, run: Path) -> None:
    ended = ran("show", "digits", *args)
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert message in ended.err


def test_what_numpy_lacks_is_shown_as_what_it_is(checkpoint_home: Path) -> None:
    writer = opened(checkpoint_home / "bf16")
    raw = Blob("half", bytes(12), "raw", "bfloat16", (2, 3), "")
    writer.commit(Draft(0, "initial", (raw,), ()))
    assert "half   bfloat16  (2, 3)  12 B" in ran("show", "bf16").out


def test_names_cannot_write_to_the_terminal(checkpoint_home: Path) -> None:
    writer = opened(checkpoint_home / "odd")
    writer.commit(Draft(0, "initial", (blob("w\x1b[31m\n", np.zeros(1)),), ()))
    assert "w\\x1b[31m\\n" in ran("show", "odd").out


def test_an_outline_ends_where_it_began() -> None:
    itself: dict[str, object] = {"one": 1}
    itself["again"] = itself
    assert list(outline("tree", itself, None)) == ["tree", "  one: 1", "  again <itself>"]
    assert without_cycles(itself) == {"one": 1, "again": "<itself>"}


def test_an_outline_shows_some_of_many() -> None:
    lines = list(outline("tree", {str(number): number for number in range(5)}, 2))
    assert lines == ["tree", "  0: 0", "  1: 1", "  ... and 3 more: --all shows them"]
    assert len(list(outline("tree", {str(number): number for number in range(5)}, None))) == 6


# --- verify ------------------------------------------------------------------------------------------------------


def test_a_sound_run_verifies(run: Path) -> None:
    ended = ran("verify", "digits")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "digits: every byte of 12 commits in 4 rounds is what was written\n"


def test_damage_is_named(run: Path) -> None:
    flip(run / "round-00000002/g0001-arrays.safetensors")
    ended = ran("verify", "digits")
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        [f"damaged  round 2 ({phase})", f"{run}/round-00000002/g0001-arrays.safetensors"]
        for phase in ("central", "evaluate", "train")
    ]
    assert "3 of 12 commits are damaged; the newest round that is whole is 3" in lines[-1]
    results = ran("verify", "digits", "--json").json()
    assert {(found["round"], found["ok"]) for found in results} == {(0, True), (1, True), (2, False), (3, True)}


def test_a_run_without_a_whole_round(checkpoint_home: Path) -> None:
    unfinished(checkpoint_home / "one", rounds=0)
    flip(checkpoint_home / "one/round-00000000/g0001-initial.manifest")
    for command in ("verify", "show", "ls", "status", "prune --damaged --yes", "export latest -o model.npz"):
        verb, *options = command.split()
        ended = ran(verb, "one", *options)
        assert (ended.code, "generation before it" in ended.err) == (1, False), command
    assert "all of 1 commit are damaged; restore the folder from a backup" in ran("verify", "one").out


# --- diff --------------------------------------------------------------------------------------------------------


def test_a_round_does_not_differ_from_itself(run: Path) -> None:
    ended = ran("diff", "digits", "digits@3")
    assert ended.code == 0
    assert ended.out.split("\n\n")[1:] == [
        "2 arrays are the same, bit for bit",
        "state: the same",
        "identity: the same",
        "metrics: the same\n",
    ]


def test_what_moved_between_two_rounds(run: Path) -> None:
    found = ran("diff", "digits@1", "digits@3", "--json").json()
    store = CheckpointStore(run)
    a, b = (store.load(number).arrays["conv.weight"] for number in (1, 3))
    assert (found["a"], found["b"], found["same_arrays"]) == (1, 3, 0)
    assert found["arrays"][0]["name"] == "conv.weight"
    assert found["arrays"][0]["norm"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
    assert {"name": "train_config.server-round", "a": 1, "b": 3} in found["state"]
    assert "central/loss" in [one["name"] for one in found["metrics"]]
    shown = [line.split() for line in ran("diff", "digits@2", "digits@3").out.splitlines()]
    assert ["strategy.m_t.conv.weight", "float64[3,", "4]", "moved"] in [words[:4] for words in shown]


def test_two_runs_of_other_shapes(run: Path, checkpoint_home: Path) -> None:
    writer = opened(checkpoint_home / "other")
    arrays = (blob("conv.weight", np.zeros(3)), blob("new", np.zeros(2)))
    writer.commit(Draft(0, "initial", arrays, (), {"identity": {"num_rounds": 9, "app": "lab/other"}}))
    found = ran("diff", "digits", "other", "--json").json()
    assert [(one["name"], one["change"]) for one in found["arrays"]] == [
        ("conv.weight", "other type"),
        ("conv.bias", "only in A"),
        ("new", "only in B"),
    ]
    assert {"name": "app", "a": "lab/app", "b": "lab/other"} in found["identity"]
    assert "float64[3, 4] -> float64[3]" in ran("diff", "digits", "other").out


def test_a_path_may_hold_the_sign_that_names_rounds(finished_run: Path, tmp_path: Path) -> None:
    odd = copied(finished_run, tmp_path / "me@home")
    assert ran("diff", f"{odd}@1", odd, "--json").json()["a"] == 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([1, 0], [0, 0], 1.0),
        ([0.0], [1.0], np.inf),
        ([1 + 1j], [1 - 1j], 2**0.5),
        ([np.nan], [1.0], np.nan),
    ],
)
def test_the_relative_norm(a: list[complex], b: list[complex], expected: float) -> None:
    assert relative_norm(np.array(a), np.array(b)) == pytest.approx(expected, nan_ok=True)


def test_what_is_no_number_has_no_norm() -> None:
    assert relative_norm(np.array(["a"]), np.array(["b"])) is None


# --- plot --------------------------------------------------------------------------------------------------------


def test_metrics_are_drawn_in_the_terminal(run: Path) -> None:
    ended = ran("plot", "digits", "--metric", "evaluate/loss", "--metric", "train/loss")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[-1].split() == ["o", "evaluate/loss", "x", "train/loss"]
    assert sum(line.count("o") for line in lines[:-3]) == 3
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_metrics_are_drawn_into_a_file(
    kind: str, checkpoint_home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "matplotlib" in request.config.getoption("--without"):
        pytest.skip("without matplotlib")
    loss = {1: 1.0, 2: float("nan"), 3: 0.5}
    unfinished(checkpoint_home / "half", loss=loss)
    written(opened(checkpoint_home / "half"), 3, loss=loss)
    target = tmp_path / f"plot.{kind}"
    assert ran("plot", "half", "-o", target).code == 0
    assert target.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])
    if kind == "svg":
        assert b"restarted" in target.read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "plot.pdf"], "expected a name that ends in .png or .svg"),
        (["--metric", "nonesuch"], "no numbers of 'nonesuch'; there are central/loss"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(args: list[str], message: str, run: Path) -> None:
    ended = ran("plot", "digits", *args)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_without_matplotlib_the_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = ran("plot", "digits", "-o", tmp_path / "plot.png")
    assert (ended.code, 'pip install "flwr-ckpt[plot]"' in ended.err) == (1, True)
    assert ran("plot", "digits").code == 0


def test_restarts_are_marked() -> None:
    lines = list(draw({"loss": {1: 3.0, 2: 2.0, 3: 1.0}}, [2], width=40, unicode=False))
    assert lines[0] == "3 |o       :"
    assert lines[11] == "1 |        :       o"
    assert lines[13] == "   1               3"
    assert lines[14] == "   o loss   : restarted before round 2"


@pytest.mark.parametrize("curve", [{5: 1.0}, {1: 2.0, 2: 2.0}, {1: -1e308, 2: 1e308}, {0: 1e-320, 9_999: 0.0}])
def test_any_finite_curve_can_be_drawn(curve: dict[int, float]) -> None:
    lines = list(draw({"loss": curve}, [], width=30, unicode=True))
    assert sum(line.count("o") for line in lines[:-1]) == len(curve)
    assert all(len(line) <= 30 for line in lines)
