"""What clients say of their images, and what the server plans from it: a small part of nnU-Net's planning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monai.networks.nets import DynUNet

NUM_CLASSES = 3  # background, grey matter, white matter
SMALLEST_EDGE = 8  # of the feature maps at the bottom of the U
FIRST_FILTERS = 8
MOST_FILTERS = 32


@dataclass(frozen=True, order=True)
class Fingerprint:
    """What a client says of its images.

    Attributes
    ----------
    height, width : int
        Of the part of its images that is not empty, in pixels.
    num_pixels : int
        How many pixels are not empty.
    mean, variance : float
        Of the intensity of those.
    """

    height: int
    width: int
    num_pixels: int
    mean: float
    variance: float


@dataclass(frozen=True)
class Plan:
    """What all clients train by.

    Attributes
    ----------
    height, width : int
        What images are cut or padded to, in pixels.
    num_pools : int
        How often the network halves them.
    mean, deviation : float
        Of the intensity, over all clients.
    """

    height: int
    width: int
    num_pools: int
    mean: float
    deviation: float

    @classmethod
    def of(cls, fingerprints: Sequence[Fingerprint]) -> Plan:
        """Plan for all clients; the order in which they answered does not matter."""
        clients = sorted(fingerprints)
        height, width = max(client.height for client in clients), max(client.width for client in clients)
        num_pools = int(math.log2(min(height, width) / SMALLEST_EDGE))
        multiple = 2**num_pools
        total = sum(client.num_pixels for client in clients)
        mean = sum(client.num_pixels * client.mean for client in clients) / total
        square = sum(client.num_pixels * (client.variance + client.mean**2) for client in clients) / total
        return cls(
            multiple * math.ceil(height / multiple),
            multiple * math.ceil(width / multiple),
            num_pools,
            mean,
            math.sqrt(square - mean**2),
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Plan:
        """Read what `to_config` gave."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    def to_config(self) -> dict[str, int | float]:
        """Give plain values, to be sent and stored."""
        return asdict(self)

    def build(self) -> DynUNet:
        """Build the network."""
        depth = self.num_pools + 1
        return DynUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=NUM_CLASSES,
            kernel_size=[3] * depth,
            strides=[1] + [2] * self.num_pools,
            upsample_kernel_size=[2] * self.num_pools,
            filters=[min(FIRST_FILTERS * 2**level, MOST_FILTERS) for level in range(depth)],
            norm_name="instance",
        )
