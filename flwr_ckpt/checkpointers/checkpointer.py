"""Which models are worth a file: the latest one, or the best by loss, by a metric, or by any score."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch
from flwr.common import Scalar

from ..store import CheckpointCorruptError, CheckpointNotFoundError, FormatVersionError
from .base import TorchModuleCheckpointer
from .model_file import Score, read_model

logger = logging.getLogger("flwr")

CheckpointScoreFunctionType = Callable[[float, dict[str, Scalar]], float]


class FunctionTorchModuleCheckpointer(TorchModuleCheckpointer):
    """Saves the model whenever its score is as good as the best so far, or better.

    NaN is never good enough, and never counts as the best. The best score is that of the file: it is read from there
    when it is first needed, so that it survives a restart, unless a run sets `best_score`, which keeps it itself. The
    score of a file that was saved for another name or direction, or is damaged, does not count.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        The folder of the file. It is made when something is saved, if it is not there.
    checkpoint_name : str
        The file's name.
    checkpoint_score_function : callable
        Makes a score of loss and metrics.
    checkpoint_score_name : str, optional
        What the score is called in logs and in the file; the function's name if left out.
    maximize : bool
        Whether more is better.

    Attributes
    ----------
    best_score : float or None
        None if nothing has been saved yet.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        checkpoint_name: str,
        checkpoint_score_function: CheckpointScoreFunctionType,
        checkpoint_score_name: str | None = None,
        maximize: bool = False,
    ) -> None:
        super().__init__(checkpoint_dir, checkpoint_name)
        self.checkpoint_score_function = checkpoint_score_function
        self.checkpoint_score_name = (
            _name_of(checkpoint_score_function) if checkpoint_score_name is None else checkpoint_score_name
        )
        self.maximize = maximize
        self.comparison_str = ">=" if maximize else "<="
        self._best_score: float | None = None
        self._score_is_known = False

    @property
    def best_score(self) -> float | None:
        """The score to beat."""
        if not self._score_is_known:
            self.best_score = self._score_of_file()
        return self._best_score

    @best_score.setter
    def best_score(self, score: float | None) -> None:
        self._best_score = score
        self._score_is_known = True

    def decide(self, loss: float, metrics: dict[str, Scalar]) -> float | None:
        """Say whether a model of this evaluation is to be saved; then its score is the best one from now on.

        Returns
        -------
        float or None
            The score to hand to `write`, or None if the model is not to be saved.

        Raises
        ------
        ValueError
            If the score is no number.
        """
        score = _number(self.checkpoint_score_function(loss, metrics), f"the score {self.checkpoint_score_name}")
        if not self._should_checkpoint(score):
            logger.info(
                "Not saving the model: %s %s is not %s the best so far, %s",
                self.checkpoint_score_name,
                score,
                self.comparison_str,
                self.best_score,
            )
            return None
        self.best_score = score
        return score

    def write(self, model: torch.nn.Module, score: float | None) -> None:
        """Save the model: the file is replaced as a whole, and durable when this returns.

        Parameters
        ----------
        model : torch.nn.Module
        score : float or None
            What `decide` gave; it goes into the file.

        Raises
        ------
        TypeError
            If it is no module, or its ``state_dict`` holds what a model file cannot hold.
        OSError
            If it cannot be written; the file is as it was.
        """
        stated = None if score is None else Score(self.checkpoint_score_name, score, self.maximize)
        self._save(model, stated)
        logger.info("Saved the model as %s (%s %s)", self.checkpoint_path, self.checkpoint_score_name, score)

    def maybe_checkpoint(self, model: torch.nn.Module, loss: float, metrics: dict[str, Scalar]) -> None:
        """Save the model if its score is as good as the best so far, or better.

        Raises
        ------
        TypeError, OSError
            As `write`; then the best score is as it was.
        ValueError
            As `decide`.
        """
        self._validate(model)
        before = self.best_score
        score = self.decide(loss, metrics)
        if score is None:
            return
        try:
            self.write(model, score)
        except BaseException:
            self.best_score = before  # that of the file which is still there
            raise

    def _should_checkpoint(self, comparison_score: float) -> bool:
        """Whether a score is as good as the best so far, or better: of two that are equal the later one wins."""
        if math.isnan(comparison_score):
            return False
        best = self.best_score
        if best is None or math.isnan(best):
            return True
        return best <= comparison_score if self.maximize else best >= comparison_score

    def _score_of_file(self) -> float | None:
        try:
            score = read_model(Path(self.checkpoint_path)).score
        except CheckpointNotFoundError:
            return None
        except (CheckpointCorruptError, FormatVersionError, OSError) as error:
            logger.warning(
                "The score of the model saved before cannot be read, so the next model replaces it: %s", error
            )
            return None
        if score is None:
            return None
        if (score.name, score.maximize) != (self.checkpoint_score_name, self.maximize):
            logger.warning(
                "%s was saved for its %s %s, which cannot be compared with %s: the next model replaces it",
                self.checkpoint_path,
                "highest" if score.maximize else "lowest",
                score.name,
                self.checkpoint_score_name,
            )
            return None
        return score.value


class LatestTorchModuleCheckpointer(FunctionTorchModuleCheckpointer):
    """Saves every model that it is offered, whatever its loss and metrics.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        The folder of the file. It is made when something is saved, if it is not there.
    checkpoint_name : str
        The file's name.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], checkpoint_name: str) -> None:
        super().__init__(checkpoint_dir, checkpoint_name, _no_score, "Latest", False)

    def _should_checkpoint(self, comparison_score: float) -> bool:
        return True


class BestLossTorchModuleCheckpointer(FunctionTorchModuleCheckpointer):
    """Saves the model with the lowest loss.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        The folder of the file. It is made when something is saved, if it is not there.
    checkpoint_name : str
        The file's name.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], checkpoint_name: str) -> None:
        super().__init__(checkpoint_dir, checkpoint_name, loss_of, "Loss", maximize=False)


class BestMetricTorchModuleCheckpointer(FunctionTorchModuleCheckpointer):
    """Saves the model with the best value of one metric.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        The folder of the file. It is made when something is saved, if it is not there.
    checkpoint_name : str
        The file's name.
    metric : str
        The metric's name.
    prefix : str
        Goes before the name; both together are the key that is looked up.
    maximize : bool
        Whether more is better.

    Attributes
    ----------
    metric_key : str
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        checkpoint_name: str,
        metric: str,
        prefix: str = "val - prediction - ",
        maximize: bool = False,
    ) -> None:
        self.metric_key = f"{prefix}{metric}"
        super().__init__(checkpoint_dir, checkpoint_name, self._metric_of, metric, maximize)

    def _metric_of(self, loss: float, metrics: dict[str, Scalar]) -> float:
        if self.metric_key not in metrics:
            raise KeyError(
                f"{self.checkpoint_path}: there is no metric {self.metric_key!r} to choose the best model by; there "
                f"are {sorted(metrics)}. The key is prefix + metric: give the prefix (also '') that fits"
            )
        return _number(metrics[self.metric_key], f"the metric {self.metric_key!r}")


def decides_first(checkpointer: object) -> TypeGuard[FunctionTorchModuleCheckpointer]:
    """Whether `decide`, and later `write`, do together what the object's ``maybe_checkpoint`` does.

    They do not for an object of another kind, nor for a subclass with a ``maybe_checkpoint`` of its own.
    """
    return (
        isinstance(checkpointer, FunctionTorchModuleCheckpointer)
        and type(checkpointer).maybe_checkpoint is FunctionTorchModuleCheckpointer.maybe_checkpoint
    )


def loss_of(loss: float, metrics: dict[str, Scalar]) -> float:
    """Score a model by its loss."""
    return loss


def _no_score(loss: float, metrics: dict[str, Scalar]) -> float:
    return 0.0


def _name_of(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{what} is {value!r:.80}, and a number is needed to compare models by") from error
