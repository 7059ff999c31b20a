"""What a server's parameters mean: the modules of FL4Health, each for one way in which parameters become a model."""

from __future__ import annotations

from .base import BaseServerCheckpointAndStateModule, ModelCheckpointers, NoModelError
from .choices import Choice
from .packing import (
    AdaptiveConstraintServerCheckpointAndStateModule,
    ClippingBitServerCheckpointAndStateModule,
    FormatServerCheckpointAndStateModule,
    PackingServerCheckpointAndStateModule,
    ScaffoldServerCheckpointAndStateModule,
)
from .partial import (
    LayerNamesServerCheckpointAndStateModule,
    PartialServerCheckpointAndStateModule,
    SparseCooServerCheckpointAndStateModule,
)
from .special import (
    DpScaffoldServerCheckpointAndStateModule,
    NnUnetServerCheckpointAndStateModule,
    OpacusServerCheckpointAndStateModule,
)

PackingServerCheckpointAndAndStateModule = PackingServerCheckpointAndStateModule  # as FL4Health spells it

__all__ = [
    "AdaptiveConstraintServerCheckpointAndStateModule",
    "BaseServerCheckpointAndStateModule",
    "Choice",
    "ClippingBitServerCheckpointAndStateModule",
    "DpScaffoldServerCheckpointAndStateModule",
    "FormatServerCheckpointAndStateModule",
    "LayerNamesServerCheckpointAndStateModule",
    "ModelCheckpointers",
    "NnUnetServerCheckpointAndStateModule",
    "NoModelError",
    "OpacusServerCheckpointAndStateModule",
    "PackingServerCheckpointAndAndStateModule",
    "PackingServerCheckpointAndStateModule",
    "PartialServerCheckpointAndStateModule",
    "ScaffoldServerCheckpointAndStateModule",
    "SparseCooServerCheckpointAndStateModule",
]
