"""Tensors, optimizers, schedulers and torch's generators."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from restarts import Plain, Process, died, restart, resume

torch = pytest.importorskip("torch")


class Mine(Plain):
    """From this module, so that this module's classes are the strategy's own."""


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "uint8", "bool", "complex64"],
)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_of_every_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    value = torch.randint(0, 2, shape).to(getattr(torch, dtype))
    strategy, warnings = restart(lambda: Mine(held=None), lambda alive: setattr(alive, "held", value))
    back = strategy.held
    assert (back.dtype, back.shape, type(back)) == (value.dtype, value.shape, torch.Tensor)
    assert back.reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
    assert warnings == []


def test_tensors_are_copied_when_they_are_captured() -> None:
    weights = torch.zeros(3)
    snapshot = Process(Mine(weights=weights)).capture()
    weights += 1
    (blob,) = snapshot.blobs
    assert (blob.dtype, blob.shape) == ("float32", (3,))
    assert bytes(blob.data) == bytes(12)


def test_views_and_transposed_tensors_keep_their_values() -> None:
    value = torch.arange(6.0).reshape(2, 3).T[1:]
    strategy, _ = restart(lambda: Mine(held=None), lambda alive: setattr(alive, "held", value))
    assert torch.equal(strategy.held, value)


def test_small_torch_values_survive() -> None:
    value = {"size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu")}
    strategy, _ = restart(lambda: Mine(held=None), lambda alive: setattr(alive, "held", value))
    assert strategy.held == value
    assert type(strategy.held["size"]) is torch.Size


def test_a_parameter_is_put_back_into_the_one_its_optimizer_holds() -> None:
    def make() -> Mine:
        weights = torch.nn.Parameter(torch.zeros(2))
        return Mine(weights=weights, optimizer=torch.optim.Adam([weights], lr=0.1))

    def step(strategy: Mine) -> None:
        strategy.weights.grad = torch.ones(2)
        strategy.optimizer.step()

    expected = make()
    for _ in range(3):
        step(expected)
    strategy, warnings = restart(make, lambda alive: (step(alive), step(alive)))
    assert strategy.optimizer.param_groups[0]["params"][0] is strategy.weights
    step(strategy)
    assert torch.equal(strategy.weights, expected.weights)
    assert warnings == []


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.5),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20),
    ],
    ids=["MultiStepLR", "CosineAnnealingLR", "ReduceLROnPlateau", "OneCycleLR"],
)
def test_learning_rate_schedulers_go_on(schedule: Any) -> None:
    def make() -> Mine:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return Mine(optimizer=optimizer, scheduler=schedule(optimizer))

    def step(strategy: Mine) -> float:
        strategy.optimizer.step()
        with_metric = isinstance(strategy.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        strategy.scheduler.step(*([1.0] if with_metric else []))
        return float(strategy.optimizer.param_groups[0]["lr"])

    expected = make()
    rates = [step(expected) for _ in range(6)]
    strategy, _ = restart(make, lambda alive: [step(alive) for _ in range(3)])
    assert [step(strategy) for _ in range(3)] == rates[3:]


def test_modules_come_back_by_their_state_dict() -> None:
    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)
            self.half = torch.nn.Linear(2, 1).to(torch.bfloat16)

    strategy, _ = restart(lambda: Mine(net=Net()), lambda alive: alive.net.norm(torch.randn(4, 2)))
    assert strategy.net.norm.num_batches_tracked == 1
    names = {blob.name for blob in Process(Mine(net=Net())).capture().blobs}
    assert "strategy.net.norm.running_mean" in names


def test_a_generator_of_torch_goes_on() -> None:
    def make() -> Mine:
        return Mine(rng=torch.Generator().manual_seed(3))

    expected = make().rng
    torch.rand(2, generator=expected)
    strategy, _ = restart(make, lambda alive: torch.rand(2, generator=alive.rng))
    assert torch.equal(torch.rand(2, generator=strategy.rng), torch.rand(2, generator=expected))


def test_sparse_tensors_are_named_as_a_problem() -> None:
    process = Process(Mine(held=None))
    process.strategy.held = torch.eye(2).to_sparse()
    assert [problem.partition(":")[0] for problem in process.capture().problems] == ["strategy.held"]


def test_a_tensor_that_is_no_more_than_a_value_is_put_in_anew() -> None:
    state = died(lambda: Mine(a=torch.zeros(2), b=None), lambda alive: alive.__dict__.update(a=torch.ones(2)))
    strategy, _ = resume(lambda: Mine(a=torch.zeros(3), b=None), state)
    assert strategy.a.tolist() == [1.0, 1.0]


def test_torch_is_not_imported_for_a_strategy_without_tensors() -> None:
    script = (
        "import sys; from flwr.serverapp.strategy import FedAvg; from flwr_ckpt.state import StateRecorder;"
        "recorder = StateRecorder(); roots = {'strategy': FedAvg()}; recorder.take_baseline(roots);"
        "recorder.capture(roots); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_views_of_a_tensor_are_views_again() -> None:
    def make() -> Mine:
        flat = torch.zeros(6)
        return Mine(flat=flat, layer=flat[2:].view(2, 2), array=flat.numpy()[:2], half=None)

    strategy, warnings = restart(make, lambda alive: alive.flat.add_(1))
    strategy.flat[2] = 7
    strategy.flat[0] = 5
    assert strategy.layer.tolist() == [[7.0, 1.0], [1.0, 1.0]]
    assert strategy.array.tolist() == [5.0, 1.0]
    assert warnings == []


def test_views_of_types_that_numpy_lacks_are_views_again() -> None:
    held = torch.arange(6).to(torch.bfloat16)
    number = torch.ones(2, dtype=torch.complex64)
    values = {"held": held, "odd": held[1::2], "number": number, "conj": number.conj(), "wide": held[:1].expand(5)}
    strategy, _ = restart(lambda: Mine(values=None), lambda alive: setattr(alive, "values", values))
    back = strategy.values
    back["held"][1] = 9
    back["held"][0] = 3
    back["number"].mul_(1j)
    assert back["odd"].tolist() == [9.0, 3.0, 5.0]
    assert back["conj"].tolist() == [-1j, -1j]
    assert back["wide"].tolist() == [3.0] * 5


def test_transposed_tensors_keep_their_strides() -> None:
    value = torch.arange(6.0).reshape(2, 3).T
    strategy, _ = restart(lambda: Mine(held=None), lambda alive: setattr(alive, "held", value))
    assert torch.equal(strategy.held, value)
    assert strategy.held.stride() == value.stride()


def test_a_view_of_a_parameter_follows_the_one_its_optimizer_holds() -> None:
    def make() -> Mine:
        weights = torch.nn.Parameter(torch.zeros(3))
        return Mine(weights=weights, first=weights.data[:1], optimizer=torch.optim.SGD([weights], lr=1.0))

    strategy, warnings = restart(make, lambda alive: alive.weights.data.add_(2))
    strategy.weights.grad = torch.ones(3)
    strategy.optimizer.step()
    assert strategy.weights.tolist() == [1.0, 1.0, 1.0]
    assert strategy.first.tolist() == [1.0]
    assert warnings == []


def test_a_module_and_what_looks_at_its_parameters() -> None:
    def make() -> Mine:
        net = torch.nn.Linear(2, 1, bias=False)
        return Mine(net=net, best=None, row=net.weight.data[0])

    def run(strategy: Mine) -> None:
        strategy.net.weight.data.fill_(2)
        strategy.best = strategy.net.state_dict()  # not a copy: it follows the module

    strategy, warnings = restart(make, run)
    assert strategy.net.weight.tolist() == [[2.0, 2.0]]
    strategy.net.weight.data.fill_(3)
    assert strategy.best["weight"].tolist() == [[3.0, 3.0]]
    assert strategy.row.tolist() == [3.0, 3.0]
    assert warnings == []


def test_parameters_that_are_views_of_a_flat_buffer() -> None:
    def make() -> Mine:
        net = torch.nn.Linear(2, 1)
        flat = torch.zeros(3)
        net.weight.data, net.bias.data = flat[:2].view(1, 2), flat[2:]
        return Mine(flat=flat, net=net)

    strategy, warnings = restart(make, lambda alive: alive.flat.fill_(4))
    assert strategy.net.bias.tolist() == [4.0]
    strategy.flat.fill_(5)
    assert strategy.net.weight.tolist() == [[5.0, 5.0]]
    assert warnings == []


def test_a_view_that_a_new_module_does_not_have_is_said() -> None:
    state = died(lambda: with_view(torch.nn.Linear(2, 1)), lambda _: None)
    _, (warning,) = resume(lambda: with_view(torch.nn.Linear(2, 1).to(torch.float64)), state)
    assert "strategy.row" in warning
    assert "strategy.net.state_dict()['weight']" in warning


def with_view(net: Any) -> Mine:
    return Mine(net=net, row=net.weight.data[0])


def test_tied_tensors_are_stored_once() -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(2, 2, bias=False)
            self.b = torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    assert len(Process(Mine(net=Tied())).capture().blobs) == 1
    strategy, _ = restart(lambda: Mine(net=Tied()), lambda alive: alive.net.a.weight.data.fill_(3))
    assert strategy.net.b.weight.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_versions_of_modules_arrive_with_their_state() -> None:
    versions = []

    class Versioned(torch.nn.BatchNorm1d):  # type: ignore[misc, name-defined]
        def _load_from_state_dict(self, state: Any, prefix: Any, metadata: Any, *rest: Any) -> None:
            versions.append(metadata.get("version"))
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    strategy, _ = restart(lambda: Mine(net=Versioned(2), best=None), lambda alive: keep_best(alive))
    assert versions == [2]
    assert strategy.best._metadata[""] == {"version": 2}


def keep_best(strategy: Mine) -> None:
    strategy.best = strategy.net.state_dict()
