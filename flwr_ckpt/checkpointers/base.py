"""One torch module and its file: what every model checkpointer has."""

from __future__ import annotations

import copy
import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from flwr.common import Scalar

from ..store.places.location import refuse_url
from .model_file import Score, class_name, link_model, load_into, read_model, tensors_of, write_model

logger = logging.getLogger("flwr")


class UnknownArchitectureError(ValueError, NotImplementedError):
    """A model file was to be loaded, and nothing says which module its tensors belong into.

    Also a `NotImplementedError`, which is what FL4Health's Opacus checkpointers raise here.
    """


class TorchModuleCheckpointer(ABC):
    """Saves a torch module to one file, and loads it from there.

    A checkpointer of your own overrides `maybe_checkpoint`. Files are plain safetensors with the names of the module's
    ``state_dict``; nothing is ever pickled.

    Parameters
    ----------
    checkpoint_dir : str or os.PathLike
        The folder of the file, on a disk. It is made when something is saved, if it is not there.
    checkpoint_name : str
        The file's name.

    Attributes
    ----------
    checkpoint_path : str
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], checkpoint_name: str) -> None:
        refuse_url(checkpoint_dir)
        self.checkpoint_path = os.path.join(os.fspath(checkpoint_dir), checkpoint_name)
        self._architecture: torch.nn.Module | None = None

    @abstractmethod
    def maybe_checkpoint(self, model: torch.nn.Module, loss: float, metrics: dict[str, Scalar]) -> None:
        """Save the model if it is worth it.

        Parameters
        ----------
        model : torch.nn.Module
        loss : float
        metrics : dict of str to Scalar
            What the evaluation of the model gave.
        """

    def link_from(self, path: str | os.PathLike[str], model: torch.nn.Module) -> bool:
        """Make the file a second name of another one that holds exactly this model, instead of a second copy.

        A file that is a link holds no score. The other file must never be changed in place.

        Parameters
        ----------
        path : str or os.PathLike
            A safetensors file, such as that of a round's arrays.
        model : torch.nn.Module
            The model that is to be saved.

        Returns
        -------
        bool
            False, with nothing done, if names or bytes differ, or the file system cannot link the two: then the model
            is to be written.

        Raises
        ------
        TypeError
            As `FunctionTorchModuleCheckpointer.write`.
        """
        self._validate(model)
        if not link_model(Path(self.checkpoint_path), Path(path), self._tensors(model)):
            return False
        self._architecture = model
        logger.info("Saved the model as %s, a link to %s", self.checkpoint_path, os.fspath(path))
        return True

    def load_checkpoint(
        self, path_to_checkpoint: str | os.PathLike[str] | None = None, *, model: torch.nn.Module | None = None
    ) -> torch.nn.Module:
        """Load a model file into a module.

        Parameters
        ----------
        path_to_checkpoint : str or os.PathLike, optional
            The file; `checkpoint_path` if left out.
        model : torch.nn.Module, optional
            The module to load into. If left out, a copy of the one that this object has saved last.

        Returns
        -------
        torch.nn.Module
            `model`, or the copy, with the weights of the file.

        Raises
        ------
        CheckpointNotFoundError
            If there is no such file (a `FileNotFoundError`).
        UnknownArchitectureError
            If no `model` is given and this object has saved none (a `ValueError`).
        CheckpointCorruptError, FormatVersionError
            If the file is damaged, no safetensors file, or a newer version's.
        ValueError
            If names or shapes of the file are not the module's; both are shown, and the module is as it was.
        """
        path = Path(self.checkpoint_path if path_to_checkpoint is None else path_to_checkpoint)
        file = read_model(path)
        target = self._copy_of_last(path, file.model) if model is None else model
        load_into(target, file.tensors, path)
        return target

    def _copy_of_last(self, path: Path, name: str) -> torch.nn.Module:
        if self._architecture is None:
            raise UnknownArchitectureError(
                f"{path} holds the weights of {name or 'a model'}, and no code: this checkpointer has saved no model "
                "yet, so it does not know the architecture. Give it: load_checkpoint(model=...)"
            )
        try:
            return copy.deepcopy(self._architecture)
        except Exception as error:  # whatever the modules in it do
            raise UnknownArchitectureError(
                f"{path}: the {class_name(self._architecture)} that was saved last cannot be copied ({error}). Give a "
                "module to load into: load_checkpoint(model=...)"
            ) from error

    def _validate(self, model: torch.nn.Module) -> None:
        """Refuse what this checkpointer cannot save."""
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"{type(self).__name__} saves a torch.nn.Module, and was given a {type(model).__name__}")

    def _tensors(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Give what goes into the file, by its name there."""
        return tensors_of(model.state_dict())

    def _save(self, model: torch.nn.Module, score: Score | None) -> None:
        self._validate(model)
        write_model(Path(self.checkpoint_path), self._tensors(model), self._class_name(model), score)
        self._architecture = model

    def _class_name(self, model: torch.nn.Module) -> str:
        return class_name(model)
