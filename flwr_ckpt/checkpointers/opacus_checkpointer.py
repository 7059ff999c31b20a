"""Checkpointers for models that Opacus has wrapped: the file holds the bare model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from .base import UnknownArchitectureError
from .checkpointer import (
    BestLossTorchModuleCheckpointer,
    FunctionTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
)
from .model_file import class_name, load_into, read_model, tensors_of

_WRAPPED = "_module."  # what Opacus puts before every name


class OpacusCheckpointer(FunctionTorchModuleCheckpointer):
    """Saves Opacus' ``GradSampleModule`` whenever its score is as good as the best so far, or better.

    The file holds the names of the model inside, so that it loads into a model that Opacus has never seen. Parameters
    and attributes are those of `FunctionTorchModuleCheckpointer`.
    """

    def load_checkpoint(
        self, path_to_checkpoint: str | os.PathLike[str] | None = None, *, model: torch.nn.Module | None = None
    ) -> torch.nn.Module:
        """Load a model file into a module, bare or wrapped.

        Parameters
        ----------
        path_to_checkpoint : str or os.PathLike, optional
            The file; `checkpoint_path` if left out.
        model : torch.nn.Module, optional
            The module to load into. It has to be given: whether a wrapped model is wanted is not known.

        Raises
        ------
        UnknownArchitectureError
            If no `model` is given (a `ValueError` and a `NotImplementedError`).
        CheckpointNotFoundError, CheckpointCorruptError, FormatVersionError, ValueError
            As `TorchModuleCheckpointer.load_checkpoint`.
        """
        if model is None:
            raise UnknownArchitectureError(
                f"{self.checkpoint_path}: an Opacus checkpointer does not know whether a bare or a wrapped model is "
                "wanted. Give it: load_checkpoint(model=...), or use load_best_checkpoint_into_model"
            )
        path = Path(self.checkpoint_path if path_to_checkpoint is None else path_to_checkpoint)
        _load(path, model, wrapped=_is_wrapped(model))
        return model

    def load_best_checkpoint_into_model(
        self, target_model: torch.nn.Module, target_is_grad_sample_module: bool = False
    ) -> None:
        """Load the saved model into a module.

        Parameters
        ----------
        target_model : torch.nn.Module
        target_is_grad_sample_module : bool
            Whether `target_model` is wrapped by Opacus.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptError, FormatVersionError, ValueError
            As `TorchModuleCheckpointer.load_checkpoint`.
        """
        _load(Path(self.checkpoint_path), target_model, wrapped=target_is_grad_sample_module)

    def _validate(self, model: torch.nn.Module) -> None:
        if not _is_wrapped(model):
            raise TypeError(
                f"{type(self).__name__} saves models that Opacus has wrapped (GradSampleModule), and was given a "
                f"{type(model).__name__}; for other models there is {_PLAIN_KIN}"
            )

    def _tensors(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return tensors_of({name.removeprefix(_WRAPPED): value for name, value in model.state_dict().items()})

    def _class_name(self, model: torch.nn.Module) -> str:
        return class_name(model._module)

    def _extract_and_save_state(self, model: torch.nn.Module) -> None:
        """Save the model: what subclasses written for FL4Health call from a ``maybe_checkpoint`` of their own."""
        self.write(model, self.best_score)


class LatestOpacusCheckpointer(OpacusCheckpointer, LatestTorchModuleCheckpointer):
    """Saves every wrapped model that it is offered; parameters as `LatestTorchModuleCheckpointer`."""


class BestLossOpacusCheckpointer(OpacusCheckpointer, BestLossTorchModuleCheckpointer):
    """Saves the wrapped model with the lowest loss; parameters as `BestLossTorchModuleCheckpointer`."""


_PLAIN_KIN = "Latest…, BestLoss… or BestMetricTorchModuleCheckpointer"


def _is_wrapped(model: object) -> bool:
    # Where Opacus has not been imported there is no model of its; a bare one can be loaded without having it at all.
    opacus = sys.modules.get("opacus.grad_sample")
    return opacus is not None and isinstance(model, opacus.AbstractGradSampleModule)


def _load(path: Path, model: torch.nn.Module, *, wrapped: bool) -> None:
    tensors = read_model(path).tensors
    if wrapped:
        tensors = {f"{_WRAPPED}{name}": tensor for name, tensor in tensors.items()}
    load_into(model, tensors, path)
