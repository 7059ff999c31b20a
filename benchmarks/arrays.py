"""The models that are saved: what Flower's aggregation leaves behind, which is an ``ArrayRecord`` of ``.npy`` bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

MIB = 1 << 20
_FLOAT = 4
_ADAPTER = "adapter"
_STEP = np.float32(1.0009765625)  # by which every number of a model differs from the round before's


@dataclass(frozen=True)
class Layout:
    """How large a model is.

    Attributes
    ----------
    count : int
        How many arrays.
    bytes_each : int
    adapters : int
        How many more there are that alone change from round to round; if 0, all change.
    adapter_bytes : int
        The size of each of those.
    """

    count: int
    bytes_each: int
    adapters: int = 0
    adapter_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """What the elements take."""
        return self.count * self.bytes_each + self.adapters * self.adapter_bytes

    @property
    def changed_bytes(self) -> int:
        """What a round changes of it."""
        return self.adapters * self.adapter_bytes or self.nbytes


def first_model(layout: Layout) -> ArrayRecord:
    """Make a model of random numbers, which no compression makes small."""
    generator = np.random.default_rng(layout.count)
    block = generator.standard_normal(max(layout.bytes_each, layout.adapter_bytes) // _FLOAT, np.float32)
    record = ArrayRecord()
    for index in range(layout.count):
        values = block[: layout.bytes_each // _FLOAT]
        record[f"layer{index:05d}.weight"] = _array(values * np.float32(1 + index / layout.count))
    for index in range(layout.adapters):
        record[f"{_ADAPTER}{index:05d}.weight"] = _array(block[: layout.adapter_bytes // _FLOAT] + np.float32(index))
    return record


def next_model(record: ArrayRecord, layout: Layout) -> ArrayRecord:
    """Make the next round's model: new bytes throughout, as Flower's aggregation makes them, also where equal."""
    following = ArrayRecord()
    for name, array in record.items():
        changes = not layout.adapters or name.startswith(_ADAPTER)
        following[name] = _array(numbers(array) * (_STEP if changes else np.float32(1)))
    return following


def numbers(array: Array) -> np.ndarray:
    """Look at the elements of a model's array where they lie."""
    header = len(array.data) - int(np.prod(array.shape)) * _FLOAT
    return np.frombuffer(array.data, np.float32, offset=header)


def same_numbers(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Whether two models are equal, to the bit."""
    return list(found) == list(expected) and all(
        np.array_equal(numbers(found[name]).view(np.uint8), numbers(array).view(np.uint8))
        for name, array in expected.items()
    )


def _array(values: np.ndarray) -> Array:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    data = b"".join((header.getvalue(), values.data))
    return Array(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", data=data)
