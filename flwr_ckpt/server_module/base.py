"""What a server knows of the model behind its parameters: when to save it, and what else survives with it.

The base of the family. Its members differ in how parameters become a model: in `_hydrate_model_for_checkpointing`.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord
from flwr.common import Parameters, Scalar

from ..checkpointers import (
    FunctionTorchModuleCheckpointer,
    PerRoundStateCheckpointer,
    TorchModuleCheckpointer,
    decides_first,
)
from ..parameter_exchange import ParameterExchanger
from ..parameter_exchange.model_arrays import check_names, model_shapes, put_arrays
from .arriving import to_ndarrays, to_parameters
from .checks import check_exchanger, check_methods, check_model, check_paths, check_types
from .choices import Choice, with_best_score

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("flwr")

ModelCheckpointers = TorchModuleCheckpointer | Sequence[TorchModuleCheckpointer] | None
ServerParameters = Parameters | ArrayRecord

MODEL = "model"
SERVER_PARAMETERS = "server_parameters"
_BEST_SCORES = "best_scores"


class NoModelError(ValueError):
    """There is no model that parameters could be put into."""


class BaseServerCheckpointAndStateModule:
    """Save the models that are worth it, and the server's state, from the parameters that a server holds.

    Parameters
    ----------
    model : torch.nn.Module, optional
        The architecture that parameters are put into; its weights are overwritten whenever that happens.
    parameter_exchanger : ParameterExchanger, optional
        Whatever has ``push_parameters`` and ``pull_parameters``; the one that clients use.
    model_checkpointers : TorchModuleCheckpointer or sequence of them, optional
        They need a model and an exchanger.
    state_checkpointer : PerRoundStateCheckpointer, optional
        Where state is kept; alone it needs no model.

    Raises
    ------
    TypeError
        If the exchanger lacks a method, or a checkpointer is not of the kind that the model needs.
    ValueError
        If there are checkpointers and no model or no exchanger, or if two checkpointers have one path.
    """

    exchanger_methods: tuple[str, ...] = ("push_parameters", "pull_parameters")
    checkpointer_type: type = object

    def __init__(
        self,
        model: nn.Module | None = None,
        parameter_exchanger: ParameterExchanger | None = None,
        model_checkpointers: ModelCheckpointers = None,
        state_checkpointer: PerRoundStateCheckpointer | None = None,
    ) -> None:
        self.model = model
        self.parameter_exchanger = parameter_exchanger
        self.model_checkpointers: Sequence[TorchModuleCheckpointer] | None = _as_sequence(model_checkpointers)
        self.state_checkpointer = state_checkpointer
        self._last_parameters: ServerParameters | None = None
        check_methods(parameter_exchanger, self.exchanger_methods, type(self).__name__)
        if self.model_checkpointers:
            self._validate_model_checkpointer_components()
        self._check_if_shared_checkpoint_names()
        check_types(self.model_checkpointers or (), self.checkpointer_type, type(self).__name__)

    # --- on its own ----------------------------------------------------------------------------------------------

    def maybe_checkpoint(self, server_parameters: ServerParameters, loss: float, metrics: dict[str, Scalar]) -> None:
        """Offer the model of these parameters to every model checkpointer.

        Parameters
        ----------
        server_parameters : Parameters or ArrayRecord
            What the server holds. A record goes by name where its names are the model's, by position where they are
            0, 1, ….
        loss : float
        metrics : dict of str to Scalar

        Raises
        ------
        ValueError
            If the parameters do not fit the model; both sides are shown.
        """
        if not self.model_checkpointers:
            logger.info("There are no model checkpointers, so no model is saved")
            return
        self.take_parameters(server_parameters)
        model = self._hydrated(server_parameters)
        for checkpointer in self.model_checkpointers:
            checkpointer.maybe_checkpoint(model, loss, metrics)

    def save_state(
        self, state_checkpoint_name: str, server_parameters: ServerParameters, other_state: Mapping[str, Any]
    ) -> None:
        """Save parameters and anything else that a restarted server needs; where there is a model, that too.

        Parameters
        ----------
        state_checkpoint_name : str
            What `maybe_load_state` finds it under.
        server_parameters : Parameters or ArrayRecord
            Kept as they are, under ``"server_parameters"``, and as a model under ``"model"``.
        other_state : Mapping of str to Any

        Raises
        ------
        ValueError
            If there is no state checkpointer, if `other_state` has one of those two keys, or if the parameters do not
            fit the model.
        TypeError
            If some of it cannot be stored; it names the key.
        """
        checkpointer = self._state_checkpointer("save")
        for key in (MODEL, SERVER_PARAMETERS):
            if key in other_state:
                raise ValueError(f"other_state has a key {key!r}, which is where this module saves its own; rename it")
        self.take_parameters(server_parameters)
        state = {**other_state, SERVER_PARAMETERS: server_parameters}
        try:
            state[MODEL] = self._hydrated(server_parameters)
        except NoModelError:
            logger.info("There is no model, so %s holds the server's parameters alone", state_checkpoint_name)
        checkpointer.save_checkpoint(state_checkpoint_name, state)

    def maybe_load_state(self, state_checkpoint_name: str) -> dict[str, Any] | None:
        """Load what was saved last under a name.

        Returns
        -------
        dict or None
            What `save_state` was given, with ``"server_parameters"`` as they were, and ``"model"``: this module's
            `model` with the weights of then (their ``state_dict``, while this module knows no model). ``None`` if
            nothing was saved.

        Raises
        ------
        ValueError
            If there is no state checkpointer, or the stored model does not fit `model`; both sides are shown.
        """
        checkpointer = self._state_checkpointer("load")
        if not checkpointer.checkpoint_exists(state_checkpoint_name):
            logger.info("No state has been saved under the name %s", state_checkpoint_name)
            return None
        state = dict(checkpointer.load_checkpoint(state_checkpoint_name))
        stored = state.get(MODEL)
        # A state checkpointer of the user's may give a module back; ours gives its state_dict.
        if self.model is not None and isinstance(stored, Mapping):
            check_names(stored, model_shapes(self.model), type(self.model).__name__, whole=True)
            put_arrays(self.model, stored)
            state[MODEL] = self.model
        return state

    def _state_checkpointer(self, what: str) -> PerRoundStateCheckpointer:
        if self.state_checkpointer is None:
            raise ValueError(f"there is no state_checkpointer to {what} state with; give this module one")
        return self.state_checkpointer

    # --- what subclasses change ----------------------------------------------------------------------------------

    def _hydrate_model_for_checkpointing(self, server_parameters: Parameters) -> None:
        """Put parameters into `model`.

        Parameters
        ----------
        server_parameters : Parameters
            Always these, whichever API the server speaks.

        Raises
        ------
        ValueError
            If there is no model or no exchanger, or the parameters do not fit the model.
        """
        model, exchanger = self._model_and_exchanger()
        exchanger.pull_parameters(to_ndarrays(server_parameters), model)

    def _validate_model_checkpointer_components(self) -> None:
        """Check, where there are model checkpointers, that there is what they need."""
        check_model(self.model)
        check_exchanger(self.parameter_exchanger)

    def _check_if_shared_checkpoint_names(self) -> None:
        """Check that no two model checkpointers write to one path."""
        check_paths(self.model_checkpointers or ())

    def _model_and_exchanger(self) -> tuple[nn.Module, Any]:
        if self.model is None:
            raise NoModelError("there is no model to put parameters into; set `model` before that is needed")
        if self.parameter_exchanger is None:
            raise ValueError("there is no parameter_exchanger to put parameters into the model with; give one")
        return self.model, self.parameter_exchanger

    def _hydrated(self, server_parameters: ServerParameters) -> nn.Module:
        self._hydrate_model_for_checkpointing(to_parameters(server_parameters, self._array_names()))
        if self.model is None:
            raise NoModelError("hydration has left `model` empty; it is where the weights are looked for")
        return self.model

    def _array_names(self) -> list[str] | None:
        if self.model is None:
            return None
        names = getattr(self.parameter_exchanger, "array_names", None)
        return list(self.model.state_dict()) if names is None else list(names(self.model))

    # --- inside a run --------------------------------------------------------------------------------------------

    def take_parameters(self, server_parameters: ServerParameters) -> None:
        """Note what the server holds: its initial parameters, every aggregate, and those of a round that is resumed.

        Raises
        ------
        ValueError
            If they are a part of a model, and do not fit it.
        """
        self._last_parameters = server_parameters

    def offer(self, server_round: int, loss: float, metrics: dict[str, Scalar]) -> list[Choice]:
        """Let every model checkpointer decide about the model of the parameters taken last.

        Our own only decide: their best scores are then those of a model that `write` has yet to save. Others save what
        they want at once.

        Returns
        -------
        list of Choice
            For `write`.
        """
        chosen: list[tuple[FunctionTorchModuleCheckpointer, float]] = []
        for checkpointer in self.model_checkpointers or ():
            if decides_first(checkpointer):
                score = checkpointer.decide(loss, metrics)
                if score is not None:
                    chosen.append((checkpointer, score))
            else:
                checkpointer.maybe_checkpoint(self._hydrated(self._taken()), loss, metrics)
        return self._choices(chosen, server_round)

    def choose_again(self, scores: Mapping[str, float], server_round: int) -> list[Choice]:
        """Make the choices of a run that was killed before it could write them, for `write`.

        Parameters
        ----------
        scores : Mapping of str to float
            By the absolute path of the checkpointer's file.
        server_round : int
            The round whose parameters were taken last.
        """
        chosen = [
            (checkpointer, scores[path])
            for checkpointer in self.model_checkpointers or ()
            if decides_first(checkpointer) and (path := os.path.abspath(checkpointer.checkpoint_path)) in scores
        ]
        return self._choices(chosen, server_round)

    def _choices(self, chosen: list[tuple[FunctionTorchModuleCheckpointer, float]], server_round: int) -> list[Choice]:
        whole = self._whole_model() if chosen else None
        return [Choice(checkpointer, server_round, score, whole) for checkpointer, score in chosen]

    def write(
        self,
        choices: Sequence[Choice],
        server_parameters: ServerParameters,
        same_as: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write the files of models that were chosen; each is durable when this returns.

        Parameters
        ----------
        choices : sequence of Choice
            What one call of `offer` or `choose_again` returned.
        server_parameters : Parameters or ArrayRecord
            What was taken last before that call.
        same_as : path, optional
            A file that may hold this very model, such as that of the round's arrays: then it is linked to, not copied.

        Raises
        ------
        OSError
            If a file cannot be written; what was there is there then.
        """
        if not choices:
            return
        model = self._hydrated_aside(server_parameters if choices[0].whole is None else choices[0].whole)
        for choice in choices:
            if same_as is None or not choice.checkpointer.link_from(same_as, model):
                choice.checkpointer.write(model, choice.score)

    def _hydrated_aside(self, server_parameters: ServerParameters) -> nn.Module:
        """Hydrate a copy: a run writes in a thread of its own, while `model` may be in use elsewhere."""
        aside = copy.copy(self)
        aside.model = copy.deepcopy(self.model)
        return aside._hydrated(server_parameters)

    def state_dict(self) -> dict[str, Any]:
        """Give what a restarted run cannot know otherwise: the best scores of all checkpointers."""
        return {
            _BEST_SCORES: {key: scored.best_score for key, scored in with_best_score(self.model_checkpointers).items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; a checkpointer that was not there then has no best score."""
        for key, scored in with_best_score(self.model_checkpointers).items():
            scored.best_score = state[_BEST_SCORES].get(key)

    def forget_scores(self) -> None:
        """Let our checkpointers begin without a best score, whatever files of older runs say."""
        for checkpointer in self.model_checkpointers or ():
            if isinstance(checkpointer, FunctionTorchModuleCheckpointer):
                checkpointer.best_score = None

    def check_parameters(self, server_parameters: ServerParameters) -> None:
        """Make sure that parameters become the model, if there are model checkpointers and the model is known.

        Raises
        ------
        ValueError
            If they do not fit it; both sides are shown.
        """
        if self.model_checkpointers and self.model is not None:
            self._hydrated_aside(server_parameters)

    def _taken(self) -> ServerParameters:
        if self._last_parameters is None:
            raise ValueError("no parameters have been taken yet that a model could be made of (take_parameters)")
        return self._last_parameters

    def _whole_model(self) -> Parameters | None:
        """The whole model, where what the server holds is only a part of one."""
        return None


def _as_sequence(checkpointers: ModelCheckpointers) -> Any:
    return [checkpointers] if hasattr(checkpointers, "maybe_checkpoint") else checkpointers
