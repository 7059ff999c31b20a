"""Arrays to and from a torch model: exchangers choose what is sent, packers put more than weights into one list.

Importing this room does not import torch; only what puts arrays into a model does.
"""

from __future__ import annotations

from .full_exchanger import FullParameterExchanger
from .layer_exchanger import (
    DynamicLayerExchanger,
    FixedLayerExchanger,
    LayerExchangerWithExclusions,
    LayerSelectionFunction,
)
from .packing_exchanger import FullParameterExchangerWithPacking
from .parameter_exchanger_base import ExchangerType, ParameterExchanger
from .parameter_packer import (
    ParameterPacker,
    ParameterPackerAdaptiveConstraint,
    ParameterPackerByName,
    ParameterPackerWithClippingBit,
    ParameterPackerWithControlVariates,
    ParameterPackerWithLayerNames,
    SparseCooParameterPacker,
)
from .parameter_selection_criteria import LayerSelectionFunctionConstructor
from .partial_parameter_exchanger import PartialParameterExchanger
from .sparse_coo_parameter_exchanger import ScoreGenFunction, SparseCooParameterExchanger

__all__ = [
    "DynamicLayerExchanger",
    "ExchangerType",
    "FixedLayerExchanger",
    "FullParameterExchanger",
    "FullParameterExchangerWithPacking",
    "LayerExchangerWithExclusions",
    "LayerSelectionFunction",
    "LayerSelectionFunctionConstructor",
    "ParameterExchanger",
    "ParameterPacker",
    "ParameterPackerAdaptiveConstraint",
    "ParameterPackerByName",
    "ParameterPackerWithClippingBit",
    "ParameterPackerWithControlVariates",
    "ParameterPackerWithLayerNames",
    "PartialParameterExchanger",
    "ScoreGenFunction",
    "SparseCooParameterExchanger",
    "SparseCooParameterPacker",
]
