"""Which models are saved, and what the best score is after a restart."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_zoo import Linear, same
from safetensors.torch import load_file
from torch import nn

from flwr_ckpt.checkpointers import (
    BestLossTorchModuleCheckpointer,
    BestMetricTorchModuleCheckpointer,
    FunctionTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    TorchModuleCheckpointer,
    decides_first,
)

NAME = "best.safetensors"


def best_loss(folder: Path | str = "") -> BestLossTorchModuleCheckpointer:
    return BestLossTorchModuleCheckpointer(folder, NAME)


def best_accuracy(folder: Path) -> BestMetricTorchModuleCheckpointer:
    return BestMetricTorchModuleCheckpointer(folder, NAME, "accuracy", prefix="", maximize=True)


def saved(checkpointer: TorchModuleCheckpointer, model: nn.Module) -> bool:
    path = Path(checkpointer.checkpoint_path)
    return path.exists() and same(load_file(path), model.state_dict())


@given(scores=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12), maximize=st.booleans())
def test_the_last_of_the_best_wins_whatever_comes(scores: list[float], maximize: bool) -> None:
    checkpointer = FunctionTorchModuleCheckpointer("", NAME, lambda loss, _: loss, "score", maximize)
    checkpointer.best_score = None

    winner = None
    for index, score in enumerate(scores):
        decided = checkpointer.decide(score, {})
        assert decided is None or decided == score
        winner = winner if decided is None else index

    numbers = [score for score in scores if not math.isnan(score)]
    best = (max(numbers) if maximize else min(numbers)) if numbers else None
    assert checkpointer.best_score == best
    assert winner == max((index for index, score in enumerate(scores) if score == best), default=None)


def test_zero_is_a_score(tmp_path: Path) -> None:
    checkpointer, model = best_loss(tmp_path), Linear()
    checkpointer.maybe_checkpoint(model, 0.0, {})
    checkpointer.maybe_checkpoint(Linear(), 5.0, {})
    assert checkpointer.best_score == 0.0
    assert saved(checkpointer, model)


def test_nan_first_saves_nothing_and_blocks_nothing(tmp_path: Path) -> None:
    checkpointer, model = best_loss(tmp_path), Linear()
    checkpointer.maybe_checkpoint(Linear(), math.nan, {})
    assert checkpointer.best_score is None
    assert not (tmp_path / NAME).exists()
    checkpointer.maybe_checkpoint(model, 3.0, {})
    checkpointer.maybe_checkpoint(Linear(), math.nan, {})
    assert saved(checkpointer, model)


def test_a_best_score_that_was_set_to_nan_blocks_nothing() -> None:
    checkpointer = best_loss()
    checkpointer.best_score = math.nan
    assert checkpointer._should_checkpoint(3.0)


def test_the_later_of_two_equals_is_saved(tmp_path: Path) -> None:
    checkpointer, later = best_accuracy(tmp_path), Linear()
    checkpointer.maybe_checkpoint(Linear(), 1.0, {"accuracy": 0.75})
    checkpointer.maybe_checkpoint(later, 1.0, {"accuracy": 0.75})
    assert saved(checkpointer, later)


def test_latest_saves_every_model(tmp_path: Path) -> None:
    checkpointer = LatestTorchModuleCheckpointer(tmp_path, NAME)
    for loss in (1.0, math.nan, 5.0):
        model = Linear()
        checkpointer.maybe_checkpoint(model, loss, {})
        assert saved(checkpointer, model)
    again, model = LatestTorchModuleCheckpointer(tmp_path, NAME), Linear()
    again.maybe_checkpoint(model, 9.0, {})
    assert saved(again, model)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_key_is_prefix_and_metric(tmp_path: Path) -> None:
    checkpointer = BestMetricTorchModuleCheckpointer(tmp_path, NAME, "accuracy", maximize=True)
    checkpointer.maybe_checkpoint(Linear(), 1.0, {"val - prediction - accuracy": 0.5, "accuracy": 0.9})
    assert (checkpointer.best_score, checkpointer.checkpoint_score_name) == (0.5, "accuracy")


def test_a_missing_metric_is_a_key_error_that_lists_the_keys(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"'accuracy'.*'f1', 'loss'"):
        best_accuracy(tmp_path).maybe_checkpoint(Linear(), 1.0, {"loss": 1.0, "f1": 0.5})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["high", b"high", None, [1.0], 1j, 10**400, torch.ones(2)])
def test_a_metric_that_is_no_number_is_a_value_error(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="'accuracy'"):
        best_accuracy(tmp_path).maybe_checkpoint(Linear(), 1.0, {"accuracy": value})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1, True, np.float32(1.0), torch.tensor(1.0)])
def test_numbers_of_every_kind_are_scores(tmp_path: Path, value: object) -> None:
    assert best_accuracy(tmp_path).decide(0.0, {"accuracy": value}) == 1.0  # type: ignore[dict-item]


def test_a_score_function_that_gives_no_number_is_named(tmp_path: Path) -> None:
    checkpointer = FunctionTorchModuleCheckpointer(tmp_path, NAME, lambda loss, metrics: None, "nothing")  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="nothing is None"):
        checkpointer.maybe_checkpoint(Linear(), 1.0, {})


class _CallableObject:
    def __call__(self, loss: float, metrics: object) -> float:
        return loss


def test_a_score_is_named_after_its_function() -> None:
    def mean_of_both(loss: float, metrics: object) -> float:
        return loss

    assert FunctionTorchModuleCheckpointer("", NAME, mean_of_both).checkpoint_score_name == "mean_of_both"
    assert FunctionTorchModuleCheckpointer("", NAME, _CallableObject()).checkpoint_score_name == "_CallableObject"


# --- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [0.25, 0.0, -0.0, math.inf, 1e-320, 0.1 + 0.2])
def test_the_best_score_survives_a_restart(tmp_path: Path, score: float) -> None:
    best_loss(tmp_path).maybe_checkpoint(Linear(), score, {})
    assert repr(best_loss(tmp_path).best_score) == repr(score)


def test_after_a_restart_a_worse_model_does_not_replace_the_best(tmp_path: Path) -> None:
    model = Linear()
    best_accuracy(tmp_path).maybe_checkpoint(model, 1.0, {"accuracy": 0.9})
    restarted = best_accuracy(tmp_path)
    restarted.maybe_checkpoint(Linear(), 1.0, {"accuracy": 0.8})
    assert saved(restarted, model)


def test_the_file_is_read_when_the_score_is_needed_not_before(tmp_path: Path) -> None:
    restarted = best_loss(tmp_path)
    best_loss(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    assert restarted.best_score == 0.5


def test_a_run_sets_the_score_and_the_file_is_not_asked(tmp_path: Path) -> None:
    best_loss(tmp_path).maybe_checkpoint(Linear(), 0.5, {})
    fresh, resumed = best_loss(tmp_path), best_loss(tmp_path)
    fresh.best_score = None
    resumed.best_score = 0.7
    assert fresh.decide(9.0, {}) == 9.0
    assert resumed.decide(0.6, {}) == 0.6


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: BestMetricTorchModuleCheckpointer(folder, NAME, "accuracy", prefix="", maximize=False),
        lambda folder: BestMetricTorchModuleCheckpointer(folder, NAME, "f1", prefix="", maximize=True),
    ],
    ids=["direction", "name"],
)
def test_scores_that_cannot_be_compared_do_not_count(
    tmp_path: Path, other: object, caplog: pytest.LogCaptureFixture
) -> None:
    best_accuracy(tmp_path).maybe_checkpoint(Linear(), 1.0, {"accuracy": 0.9})
    assert other(tmp_path).best_score is None  # type: ignore[operator]
    assert "highest accuracy" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"\x80\x04 a pickle", None])
def test_a_damaged_best_model_is_told_of_and_replaced(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    best_loss(tmp_path).maybe_checkpoint(Linear(), 0.1, {})
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage is None else damage)

    restarted, model = best_loss(tmp_path), Linear()
    restarted.maybe_checkpoint(model, 0.2, {})

    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(tmp_path / NAME) in warnings[0]
    assert saved(restarted, model)


# --- decided now, written later --------------------------------------------------------------------------------------


def test_decide_writes_nothing_and_write_decides_nothing(tmp_path: Path) -> None:
    checkpointer, model = best_loss(tmp_path), Linear()
    score = checkpointer.decide(0.5, {})
    assert score == 0.5
    assert not list(tmp_path.iterdir())
    assert checkpointer.decide(0.6, {}) is None

    checkpointer.write(model, score)
    checkpointer.write(model, score)  # offered again on resume
    assert saved(checkpointer, model)
    assert best_loss(tmp_path).best_score == 0.5


class _SavesItself(BestLossTorchModuleCheckpointer):
    def maybe_checkpoint(self, model: nn.Module, loss: float, metrics: object) -> None:
        raise AssertionError


class _ForgivesALittle(BestLossTorchModuleCheckpointer):
    def _should_checkpoint(self, comparison_score: float) -> bool:
        return self.best_score is None or comparison_score < self.best_score + 0.1


def test_what_has_its_own_way_to_save_is_told_apart() -> None:
    assert decides_first(best_loss())
    assert decides_first(LatestTorchModuleCheckpointer("", NAME))
    assert decides_first(_ForgivesALittle("", NAME))
    assert not decides_first(_SavesItself("", NAME))
    assert not decides_first(object())


def test_a_subclass_may_compare_in_its_own_way() -> None:
    checkpointer = _ForgivesALittle("", NAME)
    checkpointer.best_score = 0.5
    assert checkpointer.decide(0.55, {}) == 0.55
    assert checkpointer.decide(0.7, {}) is None
