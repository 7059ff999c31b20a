"""Send some layers of the model: always the same ones, or those that a function chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from typing import TYPE_CHECKING

from flwr.common import Config, NDArrays

from .model_arrays import by_position, model_arrays, model_shapes, put_arrays
from .parameter_exchanger_base import ParameterExchanger
from .parameter_packer import ParameterPackerWithLayerNames
from .partial_parameter_exchanger import PartialParameterExchanger

if TYPE_CHECKING:
    from torch import nn

LayerSelectionFunction = Callable[["nn.Module", "nn.Module | None"], tuple[NDArrays, list[str]]]


class FixedLayerExchanger(ParameterExchanger):
    """Exchange the same entries of the ``state_dict`` every time, in the order given here.

    Parameters
    ----------
    layers_to_transfer : sequence of str
        Names of entries of the ``state_dict``.
    """

    def __init__(self, layers_to_transfer: Sequence[str]) -> None:
        self.layers_to_transfer = list(layers_to_transfer)

    def array_names(self, model: nn.Module) -> list[str]:
        """Name what `push_parameters` sends, in its order."""
        return self.layers_to_transfer

    def apply_layer_filter(self, model: nn.Module) -> NDArrays:
        """Copy the layers that are exchanged out of a model.

        Raises
        ------
        ValueError
            If the model has not all of them.
        """
        arrays = model_arrays(model)
        _check_layers(self.layers_to_transfer, arrays, model)
        return [arrays[name] for name in self.layers_to_transfer]

    def push_parameters(
        self, model: nn.Module, initial_model: nn.Module | None = None, config: Config | None = None
    ) -> NDArrays:
        """Copy the layers that are exchanged; `initial_model` and `config` are not used."""
        return self.apply_layer_filter(model)

    def pull_parameters(self, parameters: NDArrays, model: nn.Module, config: Config | None = None) -> None:
        """Put the exchanged layers into a model; the others stay.

        Raises
        ------
        ValueError
            If their number or a shape does not fit, or the model has not all of them; it is then as it was.
        """
        shapes = model_shapes(model)
        _check_layers(self.layers_to_transfer, shapes, model)
        expected = {name: shapes[name] for name in self.layers_to_transfer}
        put_arrays(model, by_position(parameters, expected, f"the exchanged part of {type(model).__name__}"))


class LayerExchangerWithExclusions(FixedLayerExchanger):
    """Exchange every layer but those of modules of some types (``{nn.BatchNorm2d}``).

    Parameters
    ----------
    model : torch.nn.Module
        The model whose layers are exchanged.
    module_exclusions : set of type
        The types of module that stay at home; subclasses of them do not.
    """

    def __init__(self, model: nn.Module, module_exclusions: Set[type[nn.Module]]) -> None:
        self.module_exclusions = module_exclusions
        # Twice the same module under two names is two sets of entries in the state_dict.
        modules = model.named_modules(remove_duplicate=False)
        excluded = tuple(f"{name}." for name, module in modules if name and type(module) in module_exclusions)
        super().__init__([name for name in model.state_dict() if not name.startswith(excluded)])


class DynamicLayerExchanger(PartialParameterExchanger[list[str]]):
    """Exchange the layers that a function chooses after each round of training, with their names.

    Parameters
    ----------
    layer_selection_function : callable
        ``(model, initial_model) -> (arrays, names)``; `LayerSelectionFunctionConstructor` makes some.
    """

    def __init__(self, layer_selection_function: LayerSelectionFunction) -> None:
        super().__init__(ParameterPackerWithLayerNames())
        self.layer_selection_function = layer_selection_function

    def select_parameters(self, model: nn.Module, initial_model: nn.Module | None = None) -> tuple[NDArrays, list[str]]:
        return self.layer_selection_function(model, initial_model)


def _check_layers(layers: Sequence[str], entries: Collection[str], model: nn.Module) -> None:
    unknown = [name for name in layers if name not in entries]
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(unknown)}, of the layers that are to be exchanged; it has: "
            f"{', '.join(entries)}"
        )
