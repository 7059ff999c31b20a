"""Models that Opacus has wrapped."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_zoo import Linear, same
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from flwr_ckpt.checkpointers import (
    BestLossOpacusCheckpointer,
    BestLossTorchModuleCheckpointer,
    LatestOpacusCheckpointer,
    OpacusCheckpointer,
    decides_first,
)

opacus = pytest.importorskip("opacus")
grad_sample = pytest.importorskip("opacus.grad_sample")

NAME = "private.safetensors"


def wrapped(mode: str = "hooks") -> nn.Module:
    model: nn.Module = grad_sample.wrap_model(Linear(), grad_sample_mode=mode)
    return model


def bare(model: nn.Module) -> dict[str, object]:
    return {name.removeprefix("_module."): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew", "ghost"])
def test_the_file_loads_into_the_bare_model(tmp_path: Path, mode: str) -> None:
    model, target = wrapped(mode), Linear()
    checkpointer = BestLossOpacusCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(model, 0.5, {})

    target.load_state_dict(load_file(tmp_path / NAME), strict=True)

    assert same(target.state_dict(), bare(model))
    with safe_open(tmp_path / NAME, framework="pt") as file:
        assert file.metadata()["flwr_ckpt.model"] == "model_zoo:Linear"


def test_it_loads_into_either_kind(tmp_path: Path) -> None:
    model = wrapped()
    checkpointer = LatestOpacusCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(model, 0.5, {})

    plain, private = Linear(), wrapped()
    checkpointer.load_best_checkpoint_into_model(plain)
    checkpointer.load_best_checkpoint_into_model(private, target_is_grad_sample_module=True)
    assert same(plain.state_dict(), bare(model))
    assert same(private.state_dict(), model.state_dict())

    assert same(checkpointer.load_checkpoint(model=Linear()).state_dict(), bare(model))
    assert same(checkpointer.load_checkpoint(model=wrapped()).state_dict(), model.state_dict())
    elsewhere = LatestOpacusCheckpointer(tmp_path, "other")
    assert same(elsewhere.load_checkpoint(tmp_path / NAME, model=Linear()).state_dict(), bare(model))


def test_the_wrong_kind_of_target_does_not_fit(tmp_path: Path) -> None:
    checkpointer = LatestOpacusCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(wrapped(), 0.5, {})
    with pytest.raises(ValueError, match=r"only in the model: _module\.linear\.weight"):
        checkpointer.load_best_checkpoint_into_model(wrapped())


@pytest.mark.parametrize("error", [ValueError, NotImplementedError])
def test_without_a_model_nothing_can_be_loaded(tmp_path: Path, error: type[Exception]) -> None:
    checkpointer = LatestOpacusCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(wrapped(), 0.5, {})
    with pytest.raises(error, match="load_best_checkpoint_into_model"):
        checkpointer.load_checkpoint()


@pytest.mark.parametrize("kind", [LatestOpacusCheckpointer, BestLossOpacusCheckpointer])
def test_other_models_are_refused_before_they_are_scored(tmp_path: Path, kind: type[OpacusCheckpointer]) -> None:
    checkpointer = kind(tmp_path, NAME)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Linear"):
        checkpointer.maybe_checkpoint(Linear(), 0.5, {})
    with pytest.raises(TypeError, match="Linear"):
        checkpointer.write(Linear(), 0.5)
    assert checkpointer.best_score is None
    assert not list(tmp_path.iterdir())


def test_scores_work_as_for_other_models(tmp_path: Path) -> None:
    best, accurate = wrapped(), wrapped()
    by_loss = BestLossOpacusCheckpointer(tmp_path, NAME)
    by_loss.maybe_checkpoint(best, 0.0, {})
    by_loss.maybe_checkpoint(wrapped(), float("nan"), {})
    by_loss.maybe_checkpoint(wrapped(), 1.0, {})
    by_score = OpacusCheckpointer(tmp_path, "accurate", lambda _, metrics: float(metrics["accuracy"]), "accuracy", True)
    by_score.maybe_checkpoint(accurate, 1.0, {"accuracy": 0.75})
    by_score.maybe_checkpoint(wrapped(), 1.0, {"accuracy": 0.5})

    assert same(load_file(tmp_path / NAME), bare(best))
    assert same(load_file(tmp_path / "accurate"), bare(accurate))
    assert BestLossOpacusCheckpointer(tmp_path, NAME).best_score == 0.0
    assert decides_first(by_loss)


class _WrittenForFL4Health(BestLossOpacusCheckpointer):
    def maybe_checkpoint(self, model: nn.Module, loss: float, metrics: object) -> None:
        if self._should_checkpoint(loss):
            self.best_score = loss
            self._extract_and_save_state(model)


def test_a_subclass_may_save_by_itself(tmp_path: Path) -> None:
    model = wrapped()
    checkpointer = _WrittenForFL4Health(tmp_path, NAME)
    checkpointer.maybe_checkpoint(model, 0.5, {})
    assert same(load_file(tmp_path / NAME), bare(model))
    assert _WrittenForFL4Health(tmp_path, NAME).best_score == 0.5
    assert not decides_first(checkpointer)


def test_a_plain_checkpointer_keeps_the_names_of_a_wrapped_model(tmp_path: Path) -> None:
    model = wrapped("functorch")
    checkpointer = BestLossTorchModuleCheckpointer(tmp_path, NAME)
    checkpointer.maybe_checkpoint(model, 0.5, {})
    assert same(load_file(tmp_path / NAME), model.state_dict())
