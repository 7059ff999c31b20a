"""What is worth sending: layers by how far they have drifted, elements by their magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from flwr.common import NDArray, NDArrays

from .layer_exchanger import LayerSelectionFunction
from .model_arrays import check_names, model_arrays

if TYPE_CHECKING:
    from torch import nn

Scores = dict[str, NDArray]


class LayerSelectionFunctionConstructor:
    """Make functions that choose layers by the norm of their change, for `DynamicLayerExchanger`.

    Parameters
    ----------
    norm_threshold : float
        Above 0: layers whose norm lies above it are chosen by `select_by_threshold`.
    exchange_percentage : float
        Above 0, at most 1: the share of layers that `select_by_percentage` chooses, rounded up.
    normalize : bool
        Whether norms are divided by the number of elements of the layer.
    select_drift_more : bool
        False chooses the layers that have changed least (by threshold: at most that much).

    Raises
    ------
    ValueError
        If one of the numbers is out of range.
    """

    def __init__(
        self,
        norm_threshold: float,
        exchange_percentage: float,
        normalize: bool = True,
        select_drift_more: bool = True,
    ) -> None:
        if not 0 < exchange_percentage <= 1:
            raise ValueError(f"exchange_percentage={exchange_percentage}: above 0 and at most 1 was expected")
        if not norm_threshold > 0:
            raise ValueError(f"norm_threshold={norm_threshold}: a number above 0 was expected")
        self.norm_threshold = norm_threshold
        self.exchange_percentage = exchange_percentage
        self.normalize = normalize
        self.select_drift_more = select_drift_more

    def select_by_threshold(self) -> LayerSelectionFunction:
        """Make a function that chooses the layers above the threshold, in the model's order."""
        threshold, normalize, more = self.norm_threshold, self.normalize, self.select_drift_more

        def select(model: nn.Module, initial_model: nn.Module | None) -> tuple[NDArrays, list[str]]:
            norms = _drift_norms(model, initial_model, normalize)
            return _layers(model, [name for name, norm in norms.items() if (norm > threshold) == more])

        return select

    def select_by_percentage(self) -> LayerSelectionFunction:
        """Make a function that chooses a share of the layers, those with the largest (or smallest) change first."""
        share, normalize, more = self.exchange_percentage, self.normalize, self.select_drift_more

        def select(model: nn.Module, initial_model: nn.Module | None) -> tuple[NDArrays, list[str]]:
            norms = _drift_norms(model, initial_model, normalize)
            ranked = sorted(norms, key=norms.__getitem__, reverse=more)
            return _layers(model, ranked[: math.ceil(len(ranked) * share)])

        return select


def _layers(model: nn.Module, names: list[str]) -> tuple[NDArrays, list[str]]:
    arrays = model_arrays(model)
    return [arrays[name] for name in names], names


def _drift_norms(model: nn.Module, initial_model: nn.Module | None, normalize: bool) -> dict[str, float]:
    now, before = _now_and_before(model, initial_model)
    norms = {name: float(np.linalg.norm(now[name] - before[name])) for name in now}
    return {name: norm / now[name].size for name, norm in norms.items()} if normalize else norms


def _now_and_before(model: nn.Module, initial_model: nn.Module | None) -> tuple[Scores, Scores]:
    if initial_model is None:
        raise ValueError("initial_model is None; a choice by what has changed needs the model before training")
    now, before = ({k: v.astype(np.float64) for k, v in model_arrays(m).items()} for m in (model, initial_model))
    check_names(before, {name: array.shape for name, array in now.items()}, "the trained model", whole=True)
    return now, before


def _scores(model: nn.Module, score: Callable[[NDArray], NDArray]) -> Scores:
    return {name: score(array) for name, array in model_arrays(model).items()}


def _change_scores(
    model: nn.Module, initial_model: nn.Module | None, score: Callable[[NDArray, NDArray], NDArray]
) -> Scores:
    now, before = _now_and_before(model, initial_model)
    return {name: score(array, before[name]) for name, array in now.items()}


def largest_final_magnitude_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by their magnitude, the largest highest."""
    return _scores(model, np.abs)


def smallest_final_magnitude_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by their magnitude, the smallest highest."""
    return _scores(model, lambda now: -np.abs(now))


def largest_magnitude_change_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by how much they have changed, the largest change highest."""
    return _change_scores(model, initial_model, lambda now, before: np.abs(now - before))


def smallest_magnitude_change_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by how much they have changed, the smallest change highest."""
    return _change_scores(model, initial_model, lambda now, before: -np.abs(now - before))


def largest_increase_in_magnitude_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by how much their magnitude has grown, the largest growth highest."""
    return _change_scores(model, initial_model, lambda now, before: np.abs(now) - np.abs(before))


def smallest_increase_in_magnitude_scores(model: nn.Module, initial_model: nn.Module | None) -> Scores:
    """Score elements by how much their magnitude has grown, the smallest growth highest."""
    return _change_scores(model, initial_model, lambda now, before: np.abs(before) - np.abs(now))
