"""What an exchanger is: the way between a torch model and the list of arrays that is sent."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from flwr.common import Config, NDArrays

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class ParameterExchanger(Protocol):
    """Whatever has these two methods, whether it inherits from this class or not."""

    @abstractmethod
    def push_parameters(
        self, model: nn.Module, initial_model: nn.Module | None = None, config: Config | None = None
    ) -> NDArrays:
        """Take out of a model what is sent.

        Parameters
        ----------
        model : torch.nn.Module
            The model whose weights are sent.
        initial_model : torch.nn.Module, optional
            The model as it was before training, for exchangers that choose by what has changed.
        config : Config, optional
            Flower's configuration of the round.
        """

    @abstractmethod
    def pull_parameters(self, parameters: NDArrays, model: nn.Module, config: Config | None = None) -> None:
        """Put what was received into a model.

        Raises
        ------
        ValueError
            If it does not fit the model; the model is then as it was.
        """


ExchangerType = TypeVar("ExchangerType", bound=ParameterExchanger)
