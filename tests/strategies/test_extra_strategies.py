"""The strategies that Flower lacks, each against its paper's computation written out in NumPy."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import NDArrays, ndarrays_to_parameters

from flwr_ckpt import strategies
from flwr_ckpt.strategies import legacy as legacy_strategies
from tests.lab.packed import APIS, NUM_EXAMPLES, Federation

pytestmark = pytest.mark.parametrize("api", APIS)


def weights(counter: bool = False) -> NDArrays:
    """A layer, its bias and, as BatchNorm has one, a counter that is not trained."""
    layer, bias = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32), np.array([0.25, -1.0], np.float32)
    return [layer, bias, np.array(3, np.int64)] if counter else [layer, bias]


def drawn(server_round: int, partition: int, like: NDArrays) -> NDArrays:
    """Arrays that a client might send: another for each round and partition."""
    generator = np.random.default_rng([server_round, partition])
    return [np.asarray(generator.normal(size=array.shape), array.dtype) for array in like]


def variates(api: str, arrays: NDArrays) -> Any:
    return ArrayRecord(arrays) if api == "message" else ndarrays_to_parameters(arrays)


def assert_lists_equal(found: NDArrays | None, expected: NDArrays) -> None:
    assert found is not None
    assert [(array.dtype, array.shape) for array in found] == [(array.dtype, array.shape) for array in expected]
    for array, wanted in zip(found, expected, strict=True):
        if wanted.dtype.kind == "U":
            assert array.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(array, wanted, rtol=2e-6, atol=1e-7)


# --- SCAFFOLD --------------------------------------------------------------------------------------------------------


def test_scaffold_sends_the_weights_and_behind_them_the_variates(api: str) -> None:
    zeros = [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]
    federation = Federation(api, "Scaffold", weights(counter=True), initial_control_variates=variates(api, zeros))
    received, _, _ = federation.train(lambda received, partition, server_round: received)
    assert_lists_equal(received, [*weights(counter=True), *zeros])


def test_scaffold_steps_as_the_paper_says(api: str) -> None:
    """x ← x + η·mean(yᵢ − x) and c ← c + |S|/N·mean(Δcᵢ), whatever the number of examples; here |S|/N is 2/4."""
    first = [np.full((2, 2), 0.5, np.float32), np.full(2, -0.5, np.float32)]
    federation = Federation(
        api,
        "Scaffold",
        weights(counter=True),
        sampled=2,
        learning_rate=0.7,
        initial_control_variates=variates(api, first),
    )
    x, c = weights(counter=True), first
    sampled = set()
    for server_round in (1, 2, 3):
        _, partitions, aggregated = federation.train(lambda received, k, r: drawn(r, k, received))
        answers = [drawn(server_round, k, [*x, *c]) for k in partitions]
        x = [
            np.asarray(old + 0.7 * ((left + right) / 2 - old), old.dtype if old.dtype.kind == "f" else np.float64)
            for old, left, right in zip(x, answers[0][:3], answers[1][:3], strict=True)
        ]
        c = [
            np.asarray(old + 2 / 4 * (left + right) / 2, np.float32)
            for old, left, right in zip(c, answers[0][3:], answers[1][3:], strict=True)
        ]
        assert_lists_equal(aggregated, [*x, *c])
        sampled.add(tuple(partitions))
    assert all(len(partitions) == 2 for partitions in sampled)


def test_scaffold_takes_its_variates_from_a_model(api: str) -> None:
    """Zero, one for each parameter that requires gradients: BatchNorm's buffers and frozen layers have none."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    model[2].weight.requires_grad_(False)
    state = [tensor.numpy() for tensor in model.state_dict().values()]
    federation = Federation(api, "Scaffold", state, model=model)
    received, _, _ = federation.train(lambda received, partition, server_round: received)
    assert [array.shape for array in received[len(state) :]] == [(3, 2), (3,), (3,), (3,), (1,)]
    assert not any(array.any() for array in received[len(state) :])


def test_scaffold_needs_variates(api: str) -> None:
    with pytest.raises(ValueError, match=r"give a model, .* or initial_control_variates"):
        Federation(api, "Scaffold", weights())


def test_scaffolds_variate_stays_the_mean_of_the_clients(api: str) -> None:
    """Also where only some take part: the reason for the factor |S|/N."""
    own = [[np.zeros((2, 2)), np.zeros(2)] for _ in range(4)]
    zeros = variates(api, own[0])
    federation = Federation(
        api, "Scaffold", [w.astype(np.float64) for w in weights()], sampled=2, initial_control_variates=zeros
    )

    def answer(received: NDArrays, partition: int, server_round: int) -> NDArrays:
        new = drawn(server_round, partition, own[partition])
        changes = [after - before for after, before in zip(new, own[partition], strict=True)]
        own[partition] = new
        return [*received[:2], *changes]

    for _ in range(5):
        _, _, aggregated = federation.train(answer)
        assert_lists_equal(
            aggregated and aggregated[2:], [np.mean(arrays, axis=0) for arrays in zip(*own, strict=True)]
        )


# --- adaptive constraint ---------------------------------------------------------------------------------------------


def train_with_losses(federation: Federation, losses: list[list[float]]) -> list[NDArrays]:
    """One round for each list of losses, one for each client."""
    lists = []
    for given in losses:
        _, _, aggregated = federation.train(
            lambda received, k, r, given=given: [*drawn(r, k, received[:-1]), np.array(given[k])]  # type: ignore[misc]
        )
        assert aggregated is not None
        lists.append(aggregated)
    return lists


def test_the_constraint_follows_the_loss(api: str) -> None:
    """Patience 2: down after two rounds without growth, up at once when the loss grows, never below 0."""
    federation = Federation(
        api,
        "FedAvgWithAdaptiveConstraint",
        weights(),
        initial_loss_weight=0.15,
        adapt_loss_weight=True,
        loss_weight_delta=0.1,
        loss_weight_patience=2,
    )
    rising_and_falling = [5.0, 4.0, 4.0, 3.0, 3.5, 3.4, 3.3, 9.0]
    lists = train_with_losses(federation, [[loss, loss, loss, loss] for loss in rising_and_falling])
    expected = [0.15, 0.05, 0.05, 0.0, 0.1, 0.1, 0.0, 0.1]
    assert [float(arrays[-1]) for arrays in lists] == pytest.approx(expected)
    assert {(arrays[-1].dtype, arrays[-1].shape) for arrays in lists} == {(np.dtype(np.float64), ())}


@pytest.mark.parametrize("weighted", [False, True])
def test_the_constraint_averages_weights_and_losses(api: str, weighted: bool) -> None:
    federation = Federation(
        api,
        "FedAvgWithAdaptiveConstraint",
        weights(counter=True),
        adapt_loss_weight=True,
        weighted_aggregation=weighted,
        weighted_train_losses=weighted,
    )
    # Unweighted the mean falls from 2.5 to 2.475; weighted (.1, .2, .3, .4) it grows from 3.0 to 3.06.
    lists = train_with_losses(federation, [[1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 3.0, 4.4]])
    share = [count / 100 for count in NUM_EXAMPLES] if weighted else [1 / 4] * 4
    clients = [drawn(2, k, [*weights(), np.zeros(())]) for k in range(4)]
    mean = [sum(w * arrays[place] for w, arrays in zip(share, clients, strict=True)) for place in range(2)]
    assert_lists_equal(lists[1][:2], [np.asarray(array, np.float32) for array in mean])
    assert float(lists[1][-1]) == pytest.approx(1.1 if weighted else 1.0)


def test_the_constraint_stays_unless_asked_to_adapt(api: str) -> None:
    federation = Federation(api, "FedAvgWithAdaptiveConstraint", weights(), initial_loss_weight=0.3)
    received, _, _ = federation.train(lambda received, k, r: [*received[:-1], np.array(9.0)])
    assert_lists_equal(received, [*weights(), np.array(0.3)])
    assert [float(arrays[-1]) for arrays in train_with_losses(federation, [[10.0] * 4, [11.0] * 4])] == [0.3, 0.3]


# --- client-level differential privacy -------------------------------------------------------------------------------


def clipping(bits: list[float]) -> Any:
    return lambda received, k, r: [*drawn(r, k, received[:-1]), np.array(bits[k])]


def test_dp_steps_with_momentum_and_moves_the_bound(api: str) -> None:
    """Without noise: m ← β·m + mean(Δ), x ← x + η·m, C ← C·exp(−η_C·(b − γ))."""
    federation = Federation(
        api,
        "ClientLevelDPFedAvgM",
        weights(),
        adaptive_clipping=True,
        server_learning_rate=0.5,
        clipping_learning_rate=0.2,
        clipping_quantile=0.6,
        initial_clipping_bound=0.1,
        weight_noise_multiplier=0.0,
        clipping_noise_multiplier=0.0,
        beta=0.9,
    )
    x = [array.astype(np.float64) for array in weights()]
    momentum = [np.zeros((2, 2)), np.zeros(2)]
    bound = 0.1
    for server_round in (1, 2, 3):
        received, _, aggregated = federation.train(clipping([1.0, 0.0, 1.0, 1.0]))
        sent = weights() if server_round == 1 else x
        assert_lists_equal(received, [*sent, np.array([bound]) if server_round == 1 else np.array(bound)])
        differences = [drawn(server_round, k, list(sent)) for k in range(4)]
        momentum = [0.9 * m + (a + b + c + d) / 4 for m, a, b, c, d in zip(momentum, *differences, strict=True)]
        x = [old + 0.5 * m for old, m in zip(x, momentum, strict=True)]
        bound *= math.exp(-0.2 * (0.75 - 0.6))
        assert_lists_equal(aggregated, [*x, np.array(bound)])


def test_dp_noise_fits_the_bound_that_clients_clipped_to(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """z_Δ·C/n on the mean, with z_Δ = (z⁻² − (2σ)⁻²)^(−½) and the C that was sent, not the one that comes next."""
    seeded = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: seeded(*(seed or (8,))))
    federation = Federation(
        api,
        "ClientLevelDPFedAvgM",
        weights(),
        adaptive_clipping=True,
        initial_clipping_bound=2.0,
        weight_noise_multiplier=1.0,
        clipping_noise_multiplier=0.8,
    )
    _, _, aggregated = federation.train(clipping([1.0, 1.0, 1.0, 0.0]))
    generator = seeded(8)
    std = (1.0**-2 - 1.6**-2) ** -0.5 * 2.0 / 4
    noise = [generator.normal(0.0, std, (2, 2)), generator.normal(0.0, std, 2)]
    differences = [drawn(1, k, weights()) for k in range(4)]
    expected = [
        x + (a.astype(np.float64) + b + c + d) / 4 + n
        for x, n, a, b, c, d in zip(weights(), noise, *differences, strict=True)
    ]
    below = (3.0 + generator.normal(0.0, 0.8)) / 4
    assert_lists_equal(aggregated, [*expected, np.array(2.0 * math.exp(-(below - 0.5)))])


def test_dp_weighs_clients_by_their_examples(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Σ wₖΔₖ / qW with wₖ = min(nₖ/cap, 1), and noise z·C/qW; two of four are sampled."""
    seeded = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: seeded(*(seed or (8,))))
    federation = Federation(
        api,
        "ClientLevelDPFedAvgM",
        weights(),
        sampled=2,
        weighted_aggregation=True,
        sample_counts=NUM_EXAMPLES,
        per_client_example_cap=25,
        initial_clipping_bound=2.0,
        weight_noise_multiplier=0.5,
    )
    _, partitions, aggregated = federation.train(clipping([0.0] * 4))
    w = [10 / 25, 20 / 25, 1.0, 1.0]
    expected_weight = 2 / 4 * sum(w)
    generator = seeded(8)
    noise = [generator.normal(0.0, 0.5 * 2.0 / expected_weight, shape) for shape in ((2, 2), (2,))]
    differences = {k: drawn(1, k, weights()) for k in partitions}
    sums = [sum(w[k] * differences[k][place].astype(np.float64) for k in partitions) for place in range(2)]
    expected = [x + s / expected_weight + n for x, s, n in zip(weights(), sums, noise, strict=True)]
    assert_lists_equal(aggregated, [*expected, np.array(2.0)])


def test_dp_draws_other_noise_whatever_is_seeded(api: str) -> None:
    lists = []
    for _ in range(2):
        np.random.seed(3)
        federation = Federation(api, "ClientLevelDPFedAvgM", weights())
        lists.append(federation.train(clipping([0.0] * 4))[2])
    assert not np.array_equal(lists[0][0], lists[1][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clipping_quantile": 1.5}, "expected a quantile"),
        ({"initial_clipping_bound": 0.0}, "expected a norm above 0"),
        ({"weighted_aggregation": True}, "needs sample_counts"),
        ({"adaptive_clipping": True, "clipping_noise_multiplier": 0.5}, "above half of the former"),
    ],
)
def test_dp_refuses_what_makes_no_sense(api: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Federation(api, "ClientLevelDPFedAvgM", weights(), **arguments)


# --- partial exchange ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_layers_are_averaged_over_the_clients_that_sent_them(api: str, weighted: bool) -> None:
    sent: list[NDArrays] = [
        [np.array([4.0]), np.array(["b"])],
        [np.array([[1.0, 2.0]]), np.array([8.0]), np.array(["a", "b"])],
        [np.array([[5.0, 6.0]]), np.array(["a"])],
        [np.array([])],  # NumPy makes an array of no names float64
    ]
    federation = Federation(api, "FedAvgDynamicLayer", weights(), weighted_aggregation=weighted)
    received, _, aggregated = federation.train(lambda received, k, r: sent[k])
    assert_lists_equal(received, weights())  # before round 1: all of them, unpacked
    b = (10 * 4.0 + 20 * 8.0) / 30 if weighted else 6.0
    a = [(20 * 1.0 + 30 * 5.0) / 50, (20 * 2.0 + 30 * 6.0) / 50] if weighted else [3.0, 4.0]
    expected = [np.array([b]), np.array([a]), np.array(["b", "a"])]
    assert_lists_equal(aggregated, expected)
    received, _, _ = federation.train(lambda received, k, r: sent[k])
    assert_lists_equal(received, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_tensors_are_averaged_over_the_clients_that_named_them(api: str, weighted: bool) -> None:
    """What a client does not list of a tensor that it names is 0."""
    corner = [np.array([6.0]), np.array([[0, 1]]), np.array([2, 3]), np.array(["w"])]
    sent: list[NDArrays] = [
        [np.array([2.0, 4.0]), np.array([[0, 1], [1, 2]]), np.array([2, 3]), np.array(["w"])],
        [
            np.array([-1.0]), np.array([3.0]),
            np.array([[1]]), np.array([[0, 0]]),
            np.array([2]), np.array([2, 3]),
            np.array(["b", "w"]),
        ],
        [np.array([1.0]), np.array([[1]]), np.array([2]), np.array(["b"])],
        corner,
    ]  # fmt: skip
    federation = Federation(api, "FedAvgSparseCooTensor", weights(), weighted_aggregation=weighted)
    received, _, aggregated = federation.train(lambda received, k, r: sent[k])
    assert_lists_equal(received, weights())
    w = [20 * 3.0 / 70, (10 * 2.0 + 40 * 6.0) / 70, 10 * 4.0 / 70] if weighted else [1.0, 8.0 / 3, 4.0 / 3]
    b = (-20.0 + 30.0) / 50 if weighted else 0.0
    expected = [
        np.array(w), np.array([b][: int(weighted)]),
        np.array([[0, 0], [0, 1], [1, 2]]), np.array([[1]][: int(weighted)]).reshape(-1, 1).astype(np.int64),
        np.array([2, 3]), np.array([2]),
        np.array(["w", "b"]),
    ]  # fmt: skip
    assert_lists_equal(aggregated, expected)


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "returned", "message"),
    [
        ("Scaffold", [np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2))], r"3 of them, and not 4"),
        ("Scaffold", [*[np.zeros((2, 2)), np.zeros(3)] * 2], r"in places \[1, 3\]; expected \[\(2,\), \(2,\)\]"),
        ("FedAvgWithAdaptiveConstraint", [np.zeros((2, 2)), np.zeros(2)], "one number"),
        ("FedAvgWithAdaptiveConstraint", [np.zeros(2), np.zeros((2, 2)), np.zeros(())], r"in places \[0, 1\]"),
        ("ClientLevelDPFedAvgM", [np.zeros((2, 2)), np.zeros(())], r"1 of them, and not 2"),
        ("FedAvgDynamicLayer", [np.zeros((2, 2)), np.zeros(2)], "names"),
        ("FedAvgDynamicLayer", [np.zeros((2, 2)), np.array(["a", "b"])], "1 layers and 2 names"),
        ("FedAvgDynamicLayer", [np.zeros(2), np.zeros(2), np.array(["a", "a"])], "more than once"),
        ("FedAvgSparseCooTensor", [np.ones(1), np.array([[0]]), np.array(["a"])], "3 arrays"),
        ("FedAvgSparseCooTensor", [np.ones(1), np.array([[7]]), np.array([2]), np.array(["a"])], "outside"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit_is_an_error_that_says_whose(
    api: str, name: str, returned: NDArrays, message: str
) -> None:
    arguments = {"initial_control_variates": variates(api, weights())} if name == "Scaffold" else {}
    federation = Federation(api, name, weights(), **arguments)
    with pytest.raises(ValueError, match=f"(node|client) 11 returned .*{message}"):
        federation.train(lambda received, partition, server_round: returned)


def test_clients_that_disagree_about_a_shape_are_named(api: str) -> None:
    federation = Federation(api, "FedAvgDynamicLayer", weights())
    with pytest.raises(ValueError, match=r"22 returned 'a' with shape \(2,\), and (node|client) 11 with \(1,\)"):
        federation.train(lambda received, partition, server_round: [np.zeros(partition + 1), np.array(["a"])])


def test_a_round_in_which_nobody_answers_changes_nothing(api: str) -> None:
    federation = Federation(api, "FedAvgWithAdaptiveConstraint", weights(), initial_loss_weight=0.5)
    federation.train_in_vain()
    received, _, _ = federation.train(lambda received, k, r: received)
    assert_lists_equal(received, [*weights(), np.array(0.5)])


def test_clients_evaluate_what_they_would_train_on(api: str) -> None:
    """The packed list, also after a first round that failed, when Flower still hands over the plain weights."""
    federation = Federation(api, "FedAvgWithAdaptiveConstraint", weights(), initial_loss_weight=0.5)
    federation.train_in_vain()
    assert_lists_equal(federation.received_for_evaluation(), [*weights(), np.array(0.5)])
    _, _, aggregated = federation.train(lambda received, k, r: drawn(r, k, received))
    assert aggregated is not None
    assert_lists_equal(federation.received_for_evaluation(), aggregated)


def test_nobody_reports_examples(api: str) -> None:
    federation = Federation(api, "FedAvgDynamicLayer", weights(), num_examples=[0] * 4)
    with pytest.raises(ValueError, match="do clients report num-examples"):
        federation.train(lambda received, partition, server_round: [np.zeros(2), np.array(["a"])])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RecordDict({"metrics": MetricRecord({"num-examples": 1})}), "0 ArrayRecords, expected one"),
        (RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), "expected one number in its MetricRecord"),
        (
            RecordDict({"arrays": ArrayRecord([np.zeros(1)]), "metrics": MetricRecord({"num-examples": [1, 2]})}),
            "expected one number in its MetricRecord",
        ),
    ],
)
def test_a_message_without_arrays_or_examples_is_an_error_that_says_whose(
    api: str, content: RecordDict, message: str
) -> None:
    if api == "legacy":  # there a result has both
        return
    federation = Federation(api, "FedAvgDynamicLayer", weights())
    configured = federation.strategy.configure_train(1, ArrayRecord(weights()), ConfigRecord(), federation.grid)
    with pytest.raises(ValueError, match=message):
        federation.strategy.aggregate_train(1, [Message(content, reply_to=configured[0])])


def test_arrays_of_another_model_are_refused(api: str) -> None:
    """Neither what was returned last nor as many weights: somebody put another model in its place."""
    if api == "legacy":  # there the list is packed once, by the constructor
        return
    federation = Federation(api, "FedAvgWithAdaptiveConstraint", weights())
    federation.train(lambda received, k, r: received)
    with pytest.raises(ValueError, match="handed 4 arrays; expected 3, as it returned last, or 2 weights"):
        federation.strategy.configure_train(2, ArrayRecord([np.zeros(1)] * 4), ConfigRecord(), federation.grid)


def test_failures_are_not_accepted_where_the_user_says_so(api: str) -> None:
    if api == "message":  # Flower's message API has no such argument
        return
    federation = Federation(api, "FedAvgDynamicLayer", weights(), accept_failures=False)
    result = federation.result([np.zeros(1), np.array(["a"])], 0)
    assert federation.strategy.aggregate_fit(1, [(None, result)], [RuntimeError()]) == (None, {})


def test_the_room_does_not_import_torch(api: str) -> None:
    module = strategies if api == "message" else legacy_strategies
    code = f"import sys, {module.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
