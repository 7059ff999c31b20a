"""Models of the kinds that break naive savers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)


class Unusual(nn.Module):
    """Tied and half-precision parameters, counters, and buffers of every kind a file may get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.decoder = nn.Linear(3, 4)
        self.decoder.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(4)
        self.brief = nn.Parameter(torch.randn(3).to(torch.bfloat16))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("part", torch.arange(10)[2:7:2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("odd", torch.tensor([1, 2, 3], dtype=torch.int8))
        self.register_buffer("complex", torch.tensor([1 + 2j]).conj())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal to the bit, names, types and shapes included."""
    return sorted(one) == sorted(other) and all(_same(one[name], other[name]) for name in one)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
