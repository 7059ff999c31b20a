"""Client-level differential privacy with adaptive clipping, and what both of Flower's APIs share of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.common import NDArrays

from ..parameter_exchange import ParameterPackerWithClippingBit
from . import logs
from .packed import Update, unpack_beside
from .packed_fedavg import AppendingFedAvg

_PACKER = ParameterPackerWithClippingBit()


class ClientLevelDPRule:
    """The server's side of DP-FedAvgM over packed lists: weights, then the clipping bound."""

    num_sampled: int

    def __init__(
        self,
        *,
        weighted_aggregation: bool = False,
        sample_counts: Sequence[int] | None = None,
        per_client_example_cap: float | None = None,
        adaptive_clipping: bool = False,
        server_learning_rate: float = 1.0,
        clipping_learning_rate: float = 1.0,
        clipping_quantile: float = 0.5,
        initial_clipping_bound: float = 0.1,
        weight_noise_multiplier: float = 1.0,
        clipping_noise_multiplier: float = 1.0,
        beta: float = 0.9,
        **fedavg: Any,
    ) -> None:
        if not 0.0 <= clipping_quantile <= 1.0:
            raise ValueError(f"clipping_quantile={clipping_quantile}: expected a quantile, from 0 to 1")
        if not initial_clipping_bound > 0.0:
            raise ValueError(f"initial_clipping_bound={initial_clipping_bound}: expected a norm above 0")
        if weighted_aggregation and not sample_counts:
            raise ValueError("weighted_aggregation needs sample_counts: how many examples each of all clients has")
        self.clipping_bound = float(initial_clipping_bound)
        self.weighted_aggregation = weighted_aggregation
        self.sample_counts = list(sample_counts or [])
        self.per_client_example_cap = per_client_example_cap or max(self.sample_counts, default=1)
        self.adaptive_clipping = adaptive_clipping
        self.server_learning_rate = server_learning_rate
        self.clipping_learning_rate = clipping_learning_rate
        self.clipping_quantile = clipping_quantile
        self.weight_noise_multiplier = weight_noise_multiplier
        self.clipping_noise_multiplier = clipping_noise_multiplier
        self.beta = beta
        self.m_t: NDArrays | None = None
        self._noise_multiplier()  # an impossible pair of multipliers is an error now
        super().__init__(**fedavg)

    def append(self, weights: NDArrays) -> NDArrays:
        """Pack weights and the clipping bound, at first a float64 of shape ``(1,)``."""
        return [*weights, np.array([self.clipping_bound])]

    def combine_with(self, sent: NDArrays, updates: list[Update]) -> NDArrays:
        """Add up the clipped differences with noise, step with momentum, and move the bound towards its quantile."""
        weights = sent[:-1]
        answers = [unpack_beside(update, _PACKER, weights) for update in updates]
        # Fresh from the operating system: a seed that the app sets at its start would draw, after a restart, the noise
        # of earlier rounds once more.
        generator = np.random.default_rng()
        update = self._noisy_mean([arrays for arrays, _ in answers], updates, generator)
        if self.adaptive_clipping:
            self._move_bound([bit for _, bit in answers], generator)
        momentum = self.m_t or [np.zeros_like(layer) for layer in update]
        self.m_t = [self.beta * old + new for old, new in zip(momentum, update, strict=True)]
        moved = [old + self.server_learning_rate * step for old, step in zip(weights, self.m_t, strict=True)]
        return _PACKER.pack_parameters(moved, self.clipping_bound)

    def _noise_multiplier(self) -> float:
        """What is left for the weights of the noise multiplier when the clipping bits take their part."""
        if not self.adaptive_clipping or self.weight_noise_multiplier == 0.0:
            return self.weight_noise_multiplier
        if not 2.0 * self.clipping_noise_multiplier > self.weight_noise_multiplier:
            raise ValueError(
                f"weight_noise_multiplier={self.weight_noise_multiplier} with clipping_noise_multiplier="
                f"{self.clipping_noise_multiplier}: adaptive clipping spends part of the privacy on the bits, so the "
                "latter has to be above half of the former"
            )
        return float((self.weight_noise_multiplier**-2 - (2.0 * self.clipping_noise_multiplier) ** -2) ** -0.5)

    def _noisy_mean(
        self, differences: list[NDArrays], updates: list[Update], generator: np.random.Generator
    ) -> NDArrays:
        """Estimate the mean difference; the noise fits the bound that clients clipped to, not the next one."""
        shares, denominator = self._shares(updates)
        std = self._noise_multiplier() * self.clipping_bound / denominator
        sums = [
            sum((layer * share for layer, share in zip(layers, shares, strict=True)), np.zeros(layers[0].shape))
            for layers in zip(*differences, strict=True)
        ]
        return [total / denominator + generator.normal(0.0, std, total.shape) for total in sums]

    def _shares(self, updates: list[Update]) -> tuple[list[float], float]:
        """How much each difference counts, 1 at most, and what their sum is divided by."""
        if not self.weighted_aggregation:
            return [1.0] * len(updates), float(len(updates))
        cap = self.per_client_example_cap
        expected = sum(min(count / cap, 1.0) for count in self.sample_counts)
        return (
            [min(update.num_examples / cap, 1.0) for update in updates],
            expected * self.num_sampled / len(self.sample_counts),
        )

    def _move_bound(self, bits: list[float], generator: np.random.Generator) -> None:
        noise = float(generator.normal(0.0, self.clipping_noise_multiplier))
        below = (sum(bits) + noise) / len(bits)
        self.clipping_bound *= math.exp(-self.clipping_learning_rate * (below - self.clipping_quantile))
        logs.info("The clipping bound is %g from now on", self.clipping_bound)


class ClientLevelDPFedAvgM(ClientLevelDPRule, AppendingFedAvg):
    """FedAvg with server momentum and client-level differential privacy, whose clipping bound may adapt.

    The server sends the weights of the model, float64 once a round is aggregated, and the clipping bound C behind them
    (shape ``(1,)`` at first, ``()`` later). A client returns the *difference* of its weights to those, clipped to the
    norm C over all layers, and in the last place a bit: 1 if the norm was within C, else 0. Noise of standard deviation
    z·C is added to the sum of the differences; clients are trusted to clip, the server to add the noise.

    Parameters
    ----------
    weighted_aggregation : bool
        Weigh client k with wₖ = min(nₖ / cap, 1), nₖ its number of examples; the sum is divided by its expectation
        q·W, with W the sum of the weights of all clients and q the part of them that is sampled.
    sample_counts : sequence of int, optional
        How many examples each of all clients has; needed, and taken as public, with `weighted_aggregation`.
    per_client_example_cap : float, optional
        From how many examples on a client counts in full; the largest of `sample_counts` if not given.
    adaptive_clipping : bool
        Whether the bound moves.
    server_learning_rate : float
        The step along the momentum.
    clipping_learning_rate : float
        How fast the bound moves.
    clipping_quantile : float
        Which part of the clients' norms the bound should be above.
    initial_clipping_bound : float
        The first bound.
    weight_noise_multiplier : float
        The noise multiplier z of the whole mechanism. With adaptive clipping the bits take their part, and the weights
        get (z⁻² − (2σ)⁻²)^(−½).
    clipping_noise_multiplier : float
        σ, the standard deviation of the noise on the sum of the bits.
    beta : float
        The momentum's decay.
    **fedavg
        What Flower's ``FedAvg`` takes.

    Raises
    ------
    ValueError
        If an argument, or a pair of them, makes no sense.

    Notes
    -----
    Noise is drawn anew whatever is seeded. ``start()`` takes the plain weights; everybody else, an ``evaluate_fn`` from
    round 1 on among them, sees the packed list, under the keys ``"0"``, ``"1"``, …

    References
    ----------
    G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy. Differentially Private Learning with Adaptive Clipping.
    NeurIPS 2021. https://arxiv.org/abs/1905.03871

    H. B. McMahan, D. Ramage, K. Talwar, L. Zhang. Learning Differentially Private Recurrent Language Models. ICLR 2018.
    https://arxiv.org/abs/1710.06963
    """
