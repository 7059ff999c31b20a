"""Send the elements of the model with the highest scores, wherever they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from flwr.common import NDArray, NDArrays

from .model_arrays import check_names, model_arrays, model_shapes, to_array
from .parameter_packer import SparseCooParameterPacker, SparseParts
from .partial_parameter_exchanger import PartialParameterExchanger

if TYPE_CHECKING:
    from torch import Tensor, nn

ScoreGenFunction = Callable[["nn.Module", "nn.Module | None"], Mapping[str, "Tensor | NDArray"]]


class SparseCooParameterExchanger(PartialParameterExchanger[SparseParts]):
    """Exchange a share of all elements of the model, in coordinate form.

    Tensors without a dimension, and those of which nothing but zeros is chosen, are not sent.

    Parameters
    ----------
    sparsity_level : float
        The share, above 0 and at most 1. Elements that tie for the last place are all sent.
    score_gen_function : callable
        ``(model, initial_model) -> {name: scores}``, one score for each element of the entries that may be sent; see
        `flwr_ckpt.parameter_exchange.parameter_selection_criteria`.

    Raises
    ------
    ValueError
        If the share is out of range.
    """

    parameter_packer: SparseCooParameterPacker

    def __init__(self, sparsity_level: float, score_gen_function: ScoreGenFunction) -> None:
        if not 0 < sparsity_level <= 1:
            raise ValueError(f"sparsity_level={sparsity_level}: a share above 0 and at most 1 was expected")
        super().__init__(SparseCooParameterPacker())
        self.sparsity_level = sparsity_level
        self.score_gen_function = score_gen_function

    def select_parameters(
        self, model: nn.Module, initial_model: nn.Module | None = None
    ) -> tuple[NDArrays, SparseParts]:
        """Choose the elements with the highest scores.

        Raises
        ------
        ValueError
            If scores do not fit the model's entries.
        """
        scores = {name: to_array(score) for name, score in self.score_gen_function(model, initial_model).items()}
        check_names(scores, model_shapes(model), type(model).__name__)
        threshold = self._threshold(scores)
        arrays = model_arrays(model)
        chosen = {name: np.where(score >= threshold, arrays[name], 0) for name, score in scores.items()}
        sent = {name: array for name, array in chosen.items() if array.ndim and array.any()}
        parts = [self.parameter_packer.extract_coo_info_from_dense(array) for array in sent.values()]
        return [part[0] for part in parts], ([part[1] for part in parts], [part[2] for part in parts], list(sent))

    def _threshold(self, scores: Mapping[str, NDArray]) -> float:
        ranked = np.concatenate([score.ravel() for score in scores.values()])
        first = ranked.size - math.ceil(ranked.size * self.sparsity_level)
        return float(np.partition(ranked, first)[first])
