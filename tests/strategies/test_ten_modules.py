"""The ten server modules, each with the strategy it is for and models that are really trained; killed, and resumed.

What a model file has to hold is worked out here from the lists that the run's store holds, format by format, by
indexing alone: no module, exchanger or packer takes part.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from flwr.app import Array, ArrayRecord  # noqa: E402
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters  # noqa: E402
from flwr.server.strategy import FedAdam as LegacyFedAdam  # noqa: E402
from flwr.server.strategy import FedAvg as LegacyFedAvg  # noqa: E402
from flwr.serverapp.strategy import FedAdam, FedAvg  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from flwr_ckpt import CheckpointingStrategy, CheckpointStore, KeepAll, strategies  # noqa: E402
from flwr_ckpt import server_module as modules  # noqa: E402
from flwr_ckpt.checkpointers import (  # noqa: E402
    BestLossOpacusCheckpointer,
    BestLossTorchModuleCheckpointer,
    LatestOpacusCheckpointer,
    LatestTorchModuleCheckpointer,
)
from flwr_ckpt.parameter_exchange import (  # noqa: E402
    FullParameterExchanger,
    FullParameterExchangerWithPacking,
    ParameterPacker,
)
from flwr_ckpt.strategies import legacy as legacy_strategies  # noqa: E402
from tests.lab import legacy, message, probe, spending, trained  # noqa: E402
from tests.lab.process import in_a_process  # noqa: E402

ROUNDS = 3
MOMENTS = [("train", 2), ("evaluate", 2), ("file", 2)]  # the file of the second model that is the best so far
SEED = 5
DELTA = 1e-5

Module = modules.BaseServerCheckpointAndStateModule
Whole = Callable[[Sequence[NDArrays], Sequence[str]], NDArrays]  # (a list of each round, names of the model) -> weights


# --- what a list of each format says of the whole model -----------------------------------------------------------


def all_of_it(rounds: Sequence[NDArrays], names: Sequence[str]) -> NDArrays:
    return rounds[-1]


def its_first_entries(rounds: Sequence[NDArrays], names: Sequence[str]) -> NDArrays:
    return rounds[-1][: len(names)]


def named_layers(rounds: Sequence[NDArrays], names: Sequence[str]) -> NDArrays:
    whole = dict(zip(names, rounds[0], strict=True))
    for *layers, chosen in rounds[1:]:
        whole |= dict(zip(chosen.tolist(), layers, strict=True))
    return list(whole.values())


def named_elements(rounds: Sequence[NDArrays], names: Sequence[str]) -> NDArrays:
    whole = dict(zip(names, rounds[0], strict=True))
    for *parts, chosen in rounds[1:]:
        for index, name in enumerate(chosen.tolist()):
            values, places = parts[index], parts[index + len(chosen)]
            dense = np.zeros(whole[name].shape, values.dtype)
            for value, place in zip(values, places, strict=True):
                dense[tuple(place)] = value
            whole[name] = dense
    return list(whole.values())


# --- parts that a user would bring ---------------------------------------------------------------------------------


class PriorPacker(ParameterPacker[Any]):
    """A format of the user's: how frequent each label is, in one array behind the weights."""

    def pack_parameters(self, model_weights: NDArrays, additional_parameters: Any) -> NDArrays:
        return [*model_weights, additional_parameters]

    def unpack_parameters(self, packed_parameters: NDArrays) -> tuple[NDArrays, Any]:
        return packed_parameters[:-1], packed_parameters[-1]


class PlannedFedAvg(LegacyFedAvg):
    """Learns the architecture from the plan of one client before round 1, as nnU-Net's server does.

    Each client has another plan, and after a restart another client is asked first: so only a fresh run asks.
    """

    store: CheckpointStore  # the wrapper's

    def __init__(self, module: Module, salt: int) -> None:
        super().__init__()
        self.tell = module.__setattr__
        self.salt = salt
        self.plan: dict[str, int] = {}

    def initialize_parameters(self, client_manager: Any) -> Parameters:
        self.plan = self._planned() or self._ask(client_manager)
        self.tell("model", trained.Net(self.plan["hidden"]))
        return first_parameters(lambda: trained.Net(self.plan["hidden"]), self.salt)

    def _planned(self) -> dict[str, int]:
        return self.store.load().state["strategy"]["plan"] if self.store.rounds() else {}  # type: ignore[no-any-return]

    def _ask(self, client_manager: Any) -> dict[str, int]:
        client = max(client_manager.all().values(), key=lambda client: client.node_id)
        probe.passed("plan", client.partition)
        return {"hidden": 10 + 2 * client.partition}


class SaysWhenItWrites:
    """A model checkpointer that can be killed as the file of a chosen model is about to be written."""

    writes = 0

    def link_from(self, path: Any, model: Any) -> bool:
        return False

    def write(self, model: Any, score: float | None) -> None:
        self.writes += 1
        probe.passed("file", self.writes)
        super().write(model, score)  # type: ignore[misc]


class Best(SaysWhenItWrites, BestLossTorchModuleCheckpointer):
    pass


class BestPrivate(SaysWhenItWrites, BestLossOpacusCheckpointer):
    pass


def checkpointers(folder: Path) -> list[Any]:
    return [Best(folder, "best.safetensors"), LatestTorchModuleCheckpointer(folder, "latest.safetensors")]


def private_checkpointers(folder: Path) -> list[Any]:
    return [BestPrivate(folder, "best.safetensors"), LatestOpacusCheckpointer(folder, "latest.safetensors")]


def first_model(net: Callable[[], nn.Module], salt: int) -> nn.Module:
    """Random in every process, as a real one's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(salt)
        return net()


def first_arrays(net: Callable[[], nn.Module], salt: int) -> ArrayRecord:
    state = first_model(net, salt).state_dict()
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def first_parameters(net: Callable[[], nn.Module], salt: int) -> Parameters:
    return ndarrays_to_parameters(trained.arrays_of(first_model(net, salt)))


# --- the cases -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A module and a run of the strategy that it is for.

    Attributes
    ----------
    spends_on : str
        Where noise is added: what a privacy accountant counts. Empty where there is none.
    """

    name: str
    module: Callable[[Path], Module]
    strategy: Callable[[int, Module, spending.Spend], Any]  # (salt, module, spend)
    clients: Callable[[Path], trained.Clients]
    whole: Whole = all_of_it
    net: Callable[[], nn.Module] = trained.Net
    bare: Callable[[], nn.Module] = trained.Net
    keeps_names: bool = False
    spends_on: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def is_legacy(self) -> bool:
        return "legacy" in self.name


def base_module(folder: Path) -> Module:
    return modules.BaseServerCheckpointAndStateModule(trained.Net(), FullParameterExchanger(), checkpointers(folder))


def packing_module(folder: Path) -> Module:
    exchanger = FullParameterExchangerWithPacking(PriorPacker())
    return modules.PackingServerCheckpointAndStateModule(trained.Net(), exchanger, checkpointers(folder))


def opacus_module(folder: Path) -> Module:
    return modules.OpacusServerCheckpointAndStateModule(
        trained.wrapped_net(), FullParameterExchanger(), private_checkpointers(folder)
    )


def dp_scaffold_module(folder: Path) -> Module:
    return modules.DpScaffoldServerCheckpointAndStateModule(trained.wrapped_net(), private_checkpointers(folder))


def late_module(folder: Path) -> Module:
    return modules.NnUnetServerCheckpointAndStateModule(None, FullParameterExchanger(), checkpointers(folder))


def of_format(kind: Any, net: Callable[[], nn.Module] = trained.Net) -> Callable[[Path], Module]:
    return lambda folder: kind(net(), checkpointers(folder))


def packed(name: str, api: str, **arguments: Any) -> Callable[[int, Module, spending.Spend], Any]:
    """A strategy of ours, in one of the APIs."""

    def make(salt: int, module: Module, spend: spending.Spend) -> Any:
        model = {"model": trained.Net()} if name == "Scaffold" else {}
        if api == "message":
            return getattr(strategies, name)(**arguments, **model)
        return getattr(legacy_strategies, name)(
            initial_parameters=first_parameters(trained.Net, salt), **arguments, **model
        )

    return make


def plain_legacy(kind: Any, behind: Callable[[], NDArrays] = list, **arguments: Any) -> Any:
    def make(salt: int, module: Module, spend: spending.Spend) -> Any:
        weights = trained.arrays_of(first_model(trained.Net, salt))
        return kind(initial_parameters=ndarrays_to_parameters([*weights, *behind()]), **arguments)

    return make


SPARSE_CLIENTS = functools.partial(
    trained.partial_clients, part=trained.large_elements, unpack=trained.elements_by_name
)
LAYER_CLIENTS = functools.partial(trained.partial_clients, part=trained.some_layers, unpack=trained.layers_by_name)
CLIPPING: dict[str, Any] = {
    "adaptive_clipping": True,
    "initial_clipping_bound": 2.0,
    "weight_noise_multiplier": 0.05,
    "clipping_noise_multiplier": 0.5,
}


def cases() -> list[Case]:
    noiseless = [
        Case("Base, message/FedAvg", base_module, lambda *_: FedAvg(), plain, keeps_names=True),
        Case("Base, message/FedAdam", base_module, lambda *_: FedAdam(eta=0.01), plain, keeps_names=True),
        Case("Base, legacy/FedAvg", base_module, plain_legacy(LegacyFedAvg), plain),
        Case("Base, legacy/FedAdam", base_module, plain_legacy(LegacyFedAdam, eta=0.01), plain),
        Case(
            "Packing, legacy/FedAvg",
            packing_module,
            plain_legacy(LegacyFedAvg, behind=lambda: [np.full(10, 0.1)]),
            lambda _: trained.prior_clients(),
            its_first_entries,
        ),
        Case("NnUnet, legacy/PlannedFedAvg", late_module, lambda salt, m, _: PlannedFedAvg(m, salt), plain),
    ]
    ours: list[tuple[str, str, Any, Any, Any, Whole]] = [
        ("Scaffold", "Scaffold", modules.ScaffoldServerCheckpointAndStateModule, {}, scaffold, its_first_entries),
        (
            "AdaptiveConstraint",
            "FedAvgWithAdaptiveConstraint",
            modules.AdaptiveConstraintServerCheckpointAndStateModule,
            {"adapt_loss_weight": True, "loss_weight_patience": 1},
            lambda _: trained.constraint_clients(),
            its_first_entries,
        ),
        (
            "LayerNames",
            "FedAvgDynamicLayer",
            modules.LayerNamesServerCheckpointAndStateModule,
            {},
            LAYER_CLIENTS,
            named_layers,
        ),
        (
            "SparseCoo",
            "FedAvgSparseCooTensor",
            modules.SparseCooServerCheckpointAndStateModule,
            {},
            SPARSE_CLIENTS,
            named_elements,
        ),
    ]
    for short, name, kind, arguments, clients, whole in ours:
        for api in ("message", "legacy"):
            strategy = packed(name, api, **arguments)
            noiseless.append(Case(f"{short}, {api}/{name}", of_format(kind), strategy, clients, whole))
    return noiseless


def plain(folder: Path) -> trained.Clients:
    return trained.plain_clients()


def scaffold(folder: Path) -> trained.Clients:
    return trained.scaffold_clients(folder)


def private_scaffold(folder: Path) -> trained.Clients:
    return trained.scaffold_clients(folder, trained.wrapped_net, private=True)


def private_cases() -> list[Case]:
    """Where noise is added; made with Opacus, whose accountant counts."""
    return [
        Case(
            "ClippingBit, message/ClientLevelDPFedAvgM",
            of_format(modules.ClippingBitServerCheckpointAndStateModule, trained.PlainNet),
            lambda _, m, spend: spending.on_aggregates(strategies.ClientLevelDPFedAvgM, spend)(**CLIPPING),
            lambda _: trained.clipping_clients(),
            its_first_entries,
            trained.PlainNet,
            trained.PlainNet,
            spends_on="aggregates",
        ),
        Case(
            "Opacus, message/FedAvg",
            opacus_module,
            lambda _, m, spend: spending.on_attempts(FedAvg, spend)(),
            lambda _: trained.private_clients(),
            all_of_it,
            trained.wrapped_net,
            trained.PlainNet,
            keeps_names=True,
            spends_on="attempts",
        ),
        Case(
            "DpScaffold, message/Scaffold",
            dp_scaffold_module,
            lambda _, m, spend: spending.on_attempts(strategies.Scaffold, spend)(model=trained.wrapped_net()),
            private_scaffold,
            its_first_entries,
            trained.wrapped_net,
            trained.PlainNet,
            spends_on="attempts",
        ),
    ]


# --- one life of a server ------------------------------------------------------------------------------------------


class Spent:
    """Opacus' accountant of a run; a round of a client's training is some steps, an aggregate of the server's one."""

    def __init__(self, case: Case) -> None:
        from opacus.accountants import RDPAccountant

        self.accountant = RDPAccountant()
        on_clients = case.spends_on == "attempts"
        self.steps = trained.STEPS if on_clients else 1
        self.noise = trained.NOISE_MULTIPLIER if on_clients else 4.0
        self.rate = trained.sample_rate() if on_clients else 1.0

    def spend(self, server_round: int, releases: int) -> None:
        for _ in range(releases * self.steps):
            self.accountant.step(noise_multiplier=self.noise, sample_rate=self.rate)

    @property
    def epsilon(self) -> float:
        return float(self.accountant.get_epsilon(DELTA))


def serve(case: Case, folder: Path, salt: int) -> dict[str, Any]:
    """One life of a server, to its end."""
    module, spent = case.module(folder / "models"), Spent(case) if case.spends_on else None
    (folder / "clients").mkdir(exist_ok=True)
    clients = case.clients(folder / "clients")
    strategy = CheckpointingStrategy(
        case.strategy(salt, module, spent.spend if spent else _spend_nothing),
        folder / "run",
        module=module,
        seed=SEED,
        keep=KeepAll(),
        extra_state={"accountant": spent.accountant} if spent else None,
    )
    if case.is_legacy:
        manager = legacy.clients(salt, make=trained.legacy_client(clients))
        history = legacy.serve(strategy, manager, ROUNDS, server=trained.OneByOne)
        strategy.close()
        return legacy.told(history, strategy.store.load().parameters())
    client = trained.named_message_client(clients) if case.keeps_names else trained.message_client(clients)
    grid, arrays = message.FakeGrid(client, salt), first_arrays(case.net, salt)
    told = message.told(message.start(strategy, grid, num_rounds=ROUNDS, arrays=arrays, evaluate_fn=None))
    return {**told, "epsilon": spent.epsilon if spent else None}


def _spend_nothing(server_round: int, releases: int) -> None:
    """There is no noise."""


def life(case: Case, folder: Path, log: str, salt: int, kill_at: tuple[str, int] | None = None) -> Any:
    """One life of a server in a process of its own; None if it was killed."""
    trained.prepare()

    def work() -> Any:
        probe.watch(folder / log, kill_at)
        return serve(case, folder, salt)

    folder.mkdir(exist_ok=True)
    return in_a_process(work, folder)


@functools.cache
def uninterrupted(case: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        told = life(case, Path(folder) / "whole", "log", 1)
        check_files(case, Path(folder) / "whole")
        return told


# --- what has to hold ----------------------------------------------------------------------------------------------


def model_for(case: Case, tensors: Any) -> nn.Module:
    """The architecture, without anything of ours or of Opacus'."""
    return trained.Net(len(tensors["first.bias"])) if case.bare is trained.Net else case.bare()


def check_file(case: Case, folder: Path, name: str, server_round: int) -> None:
    """A model file is plain safetensors, fits strictly, and holds the weights of that round to the bit."""
    tensors = load_file(folder / "models" / name)
    model = model_for(case, tensors)
    model.load_state_dict(tensors, strict=True)
    store = CheckpointStore(folder / "run")
    rounds = [list(store.load(r).arrays.values()) for r in range(server_round + 1)]
    names = list(model.state_dict())
    expected = case.whole(rounds, names)
    for entry, array in zip(names, expected, strict=True):
        held = model.state_dict()[entry].numpy()
        assert held.tobytes() == np.asarray(array).astype(held.dtype).tobytes(), f"{name}: {entry}"


def check_files(case: Case, folder: Path) -> None:
    losses = CheckpointStore(folder / "run").history()["evaluate/loss"]
    best = min((loss, -server_round) for server_round, loss in losses.items() if server_round > 0)
    check_file(case, folder, "best.safetensors", -best[1])
    check_file(case, folder, "latest.safetensors", ROUNDS)


def check_previous_best(case: Case, folder: Path) -> None:
    """Killed between the choice of round 2 and its file: the choice is durable, and round 1's model is still there."""
    losses = CheckpointStore(folder / "run").history()["evaluate/loss"]
    assert losses[2] < losses[1]
    check_file(case, folder, "best.safetensors", 1)


def kill_and_resume(case: Case, folder: Path, kill_at: tuple[str, int]) -> Any:
    assert life(case, folder, "first", 1, kill_at) is None, f"{case} ended before it could be killed"
    if kill_at[0] == "file":
        check_previous_best(case, folder)
    resumed = life(case, folder, "second", 2)
    check_files(case, folder)
    return resumed


# Their modules and rules are tested with the other API, or strategy, as well.
SLOW = (
    "Base, message/FedAvg",
    "Base, legacy/FedAvg",
    "AdaptiveConstraint, legacy/FedAvgWithAdaptiveConstraint",
    "LayerNames, legacy/FedAvgDynamicLayer",
    "SparseCoo, legacy/FedAvgSparseCooTensor",
)
NOISELESS = [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.name in SLOW else []) for c in cases()]


@pytest.mark.parametrize("kill_at", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
@pytest.mark.parametrize("case", NOISELESS)
def test_a_module_without_noise_ends_in_the_same_bits(
    case: Case, kill_at: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    resumed = kill_and_resume(case, tmp_path / "killed", kill_at)
    assert resumed == uninterrupted(case)
    record_property("module", [case.name, *kill_at, "same bits"])


@pytest.mark.parametrize("kill_at", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
@pytest.mark.parametrize("case", private_cases(), ids=str)
def test_a_module_with_noise_counts_what_was_spent(
    case: Case, kill_at: tuple[str, int], tmp_path: Path, record_property: Any
) -> None:
    pytest.importorskip("opacus")
    folder = tmp_path / "killed"
    resumed, whole = kill_and_resume(case, folder, kill_at), uninterrupted(case)
    assert resumed["arrays"] != whole["arrays"], "the noise is other noise"
    assert {kind: list(rounds) for kind, rounds in resumed["metrics"].items()} == {
        kind: list(rounds) for kind, rounds in whole["metrics"].items()
    }
    sent = probe.noted(folder / "first") + probe.noted(folder / "second")
    attempts = sum(count for (phase, _), count in sent.items() if phase == "train")
    assert attempts == ROUNDS + (kill_at[0] == "train")
    expected = Spent(case)
    expected.spend(ROUNDS, attempts if case.spends_on == "attempts" else ROUNDS)
    assert resumed["epsilon"] == expected.epsilon
    record_property("module", [case.name, *kill_at, f"ε {resumed['epsilon']:.3f}"])


def test_the_server_learns_the_architecture_once(tmp_path: Path) -> None:
    """After the restart another client would be asked first, whose plan is another one."""
    case = next(case for case in cases() if case.name.startswith("NnUnet"))
    folder = tmp_path / "killed"
    kill_and_resume(case, folder, ("train", 2))
    first = legacy_ids(1).index(max(legacy_ids(1)))
    assert first != legacy_ids(2).index(max(legacy_ids(2)))
    assert probe.noted(folder / "first")["plan", first] == 1
    assert not [phase for phase, _ in probe.noted(folder / "second") if phase == "plan"]
    state = CheckpointStore(folder / "run").load().state["strategy"]
    assert state["plan"] == {"hidden": 10 + 2 * first}


def legacy_ids(salt: int) -> list[int]:
    clients = legacy.clients(salt).all().values()
    return [client.node_id for client in sorted(clients, key=lambda client: client.partition)]
