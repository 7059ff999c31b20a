"""``module=``: models worth a file, inside a run, through both APIs."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict  # noqa: E402
from flwr.common import ndarrays_to_parameters  # noqa: E402
from flwr.server.strategy import FedAvg as LegacyFedAvg  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from flwr_ckpt import CheckpointingStrategy, CheckpointStore, KeepAll  # noqa: E402
from flwr_ckpt.checkpointers import (  # noqa: E402
    BestLossTorchModuleCheckpointer,
    LatestTorchModuleCheckpointer,
    PerRoundStateCheckpointer,
    TorchModuleCheckpointer,
)
from flwr_ckpt.parameter_exchange import FullParameterExchanger  # noqa: E402
from flwr_ckpt.server_module import BaseServerCheckpointAndStateModule  # noqa: E402
from tests.lab import legacy, message, probe  # noqa: E402
from tests.lab.process import in_a_process  # noqa: E402


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Linear(3, 4)


def net(salt: int = 0) -> Net:
    torch.manual_seed(salt)
    return Net()


def record(salt: int = 0) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in net(salt).state_dict().items()})


def losses(values: list[float]) -> Any:
    """Clients whose loss goes as told, round by round."""

    def client(phase: str, partition: int, content: RecordDict) -> RecordDict:
        answer = message.average_client(phase, partition, content)
        server_round = int(next(iter(content.config_records.values()))["server-round"])  # type: ignore[arg-type]
        metrics = next(iter(answer.metric_records.values()))
        metrics["loss"] = values[server_round - 1]
        return answer

    return client


def module(folder: Path, *checkpointers: Any, **kwargs: Any) -> BaseServerCheckpointAndStateModule:
    best = BestLossTorchModuleCheckpointer(folder, "best.safetensors")
    latest = LatestTorchModuleCheckpointer(folder, "latest.safetensors")
    return BaseServerCheckpointAndStateModule(
        net(9), FullParameterExchanger(), [best, latest, *checkpointers], **kwargs
    )


def weights(path: Path) -> dict[str, Any]:
    Net().load_state_dict(load_file(path), strict=True)
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def stored(run: Path, server_round: int | None = None) -> dict[str, Any]:
    return {name: array.tobytes() for name, array in CheckpointStore(run).load(server_round).arrays.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


def test_the_files_hold_exactly_the_aggregated_weights(run: Path, tmp_path: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path), keep=KeepAll())
    grid = message.FakeGrid(losses([3.0, 0.0, 5.0, 0.5]), 1)
    message.start(strategy, grid, arrays=record(), evaluate_fn=None)
    assert weights(tmp_path / "best.safetensors") == stored(run, 2), "0.0 is a score"
    assert weights(tmp_path / "latest.safetensors") == stored(run, 4)


def test_a_model_that_is_a_rounds_file_takes_no_second_copy(run: Path, tmp_path: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path))
    message.start(strategy, message.FakeGrid(losses([3, 2, 1, 0]), 1), arrays=record(), evaluate_fn=None)
    assert (tmp_path / "best.safetensors").stat().st_ino == (
        run / "round-00000004" / "g0001-arrays.safetensors"
    ).stat().st_ino


@pytest.mark.parametrize("kill_at", [("train", 3), ("evaluate", 3), ("train", 4)])
def test_the_best_survives_a_kill(kill_at: tuple[str, int], run: Path, tmp_path: Path) -> None:
    """A worse model after the restart does not overwrite a better one from before."""
    run.parent.mkdir(parents=True)

    def work() -> None:
        probe.watch(tmp_path / "log", kill_at)
        strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path), seed=1, durable="before-release")
        message.start(strategy, message.FakeGrid(losses([3, 0.5, 5, 4]), 1), arrays=record(), evaluate_fn=None)

    assert in_a_process(work, run.parent) is None
    best = weights(tmp_path / "best.safetensors")
    strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path), seed=1)
    message.start(strategy, message.FakeGrid(losses([3, 0.5, 5, 4]), 2), arrays=record(5), evaluate_fn=None)
    assert weights(tmp_path / "best.safetensors") == best
    assert weights(tmp_path / "latest.safetensors") == stored(run)


class KilledBeforeTheFile(BestLossTorchModuleCheckpointer):
    """Dies as the file of a chosen model is about to be written."""

    kill_at = 0.5

    def write(self, model: Any, score: float | None) -> None:
        if score == pytest.approx(self.kill_at):
            from tests.lab.process import kill_me

            kill_me()
        super().write(model, score)

    def link_from(self, path: Any, model: Any) -> bool:
        return False


def test_killed_between_choice_and_file_the_previous_best_is_there_and_then_the_better_one(
    run: Path, tmp_path: Path
) -> None:
    run.parent.mkdir(parents=True)

    def make(kill: bool) -> Any:
        checkpointer = KilledBeforeTheFile(tmp_path, "best.safetensors")
        checkpointer.kill_at = 0.5 if kill else -1
        only = BaseServerCheckpointAndStateModule(net(9), FullParameterExchanger(), checkpointer)
        return CheckpointingStrategy(FedAvg(), run, module=only, durable="before-release")

    def work() -> None:
        grid = message.FakeGrid(losses([3, 2, 0.5, 4]), 1)
        message.start(make(kill=True), grid, arrays=record(), evaluate_fn=None)

    assert in_a_process(work, run.parent) is None
    assert CheckpointStore(run).latest().round == 3  # type: ignore[union-attr]
    assert weights(tmp_path / "best.safetensors") == stored(run, 2)
    chosen = stored(run, 3)
    message.start(make(kill=False), message.FakeGrid(losses([3, 2, 0.5, 4]), 2), arrays=record(5), evaluate_fn=None)
    assert weights(tmp_path / "best.safetensors") == chosen


def test_weights_are_read_beside_other_threads_without_pythons_parser(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, parsing = ast.parse, set()

    def noted(*args: Any, **kwargs: Any) -> ast.AST:
        parsing.add(threading.current_thread().name)
        return parse(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", noted)
    only = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path))
    message.start(only, message.FakeGrid(losses([3, 2]), 1), arrays=record(), evaluate_fn=None, num_rounds=2)
    assert weights(tmp_path / "best.safetensors") == stored(run, 2)
    assert parsing == {threading.main_thread().name}, "two threads that parse at once break each other in Python 3.11"


def test_a_fresh_run_ignores_the_scores_of_old_files(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate_fn": None, "num_rounds": 2}
    first = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path))
    message.start(first, message.FakeGrid(losses([0.1, 0.1]), 1), arrays=record(), **options)
    other = run.with_name("other")
    second = CheckpointingStrategy(FedAvg(), other, module=module(tmp_path))
    message.start(second, message.FakeGrid(losses([3, 2]), 1), arrays=record(5), **options)
    assert weights(tmp_path / "best.safetensors") == stored(other, 2)


def test_central_evaluation_decides_where_no_client_evaluates(run: Path, tmp_path: Path) -> None:
    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return MetricRecord({"loss": [9.0, 3.0, 1.0, 2.0][server_round]}) if server_round != 3 else None

    strategy = CheckpointingStrategy(FedAvg(fraction_evaluate=0.0), run, module=module(tmp_path), keep=KeepAll())
    message.start(
        strategy, message.FakeGrid(losses([1, 1, 1]), 1), arrays=record(), evaluate_fn=evaluate_fn, num_rounds=3
    )
    assert weights(tmp_path / "best.safetensors") == stored(run, 2)
    assert weights(tmp_path / "latest.safetensors") == stored(run, 2), "a round without evaluation is not offered"


@pytest.mark.parametrize("clients_evaluate", [True, False])
def test_the_legacy_api(clients_evaluate: bool, run: Path, tmp_path: Path) -> None:
    def strategy() -> Any:
        inner = LegacyFedAvg(
            initial_parameters=ndarrays_to_parameters([t.numpy() for t in net().state_dict().values()]),
            fraction_evaluate=1.0 if clients_evaluate else 0.0,
            evaluate_fn=lambda server_round, weights, config: ([9.0, 3.0, 1.0, 2.0, 4.0][server_round], {}),
        )
        return CheckpointingStrategy(inner, run, module=module(tmp_path), keep=KeepAll(), seed=1)

    first = strategy()
    legacy.serve(first, legacy.clients(1), 2)
    first.close()
    second = strategy()
    legacy.serve(second, legacy.clients(2), 4)
    second.close()
    history = CheckpointStore(run).history()
    scores = history["evaluate/loss"] if clients_evaluate else history["central/loss"]
    best = min((value, -server_round) for server_round, value in scores.items() if server_round > 0)
    assert list(weights(tmp_path / "best.safetensors").values()) == list(stored(run, -best[1]).values())
    assert list(weights(tmp_path / "latest.safetensors").values()) == list(stored(run, 4).values())


def test_a_users_own_checkpointer_is_called_with_the_models_of_the_rounds(run: Path, tmp_path: Path) -> None:
    class Notes(TorchModuleCheckpointer):
        best_score = 0.0
        seen: list[Any]

        def maybe_checkpoint(self, model: Any, loss: float, metrics: Any) -> None:
            self.seen.append((loss, {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}))
            self.best_score += loss

    notes = Notes(tmp_path, "notes")
    notes.seen = []
    strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path, notes))
    message.start(strategy, message.FakeGrid(losses([3, 2]), 1), arrays=record(), evaluate_fn=None, num_rounds=2)
    assert [loss for loss, _ in notes.seen] == pytest.approx([3, 2])
    assert notes.seen[-1][1] == stored(run)
    again = Notes(tmp_path, "notes")
    again.seen = []
    resumed = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path, again))
    message.start(resumed, message.FakeGrid(losses([3, 2, 1]), 1), arrays=record(), evaluate_fn=None, num_rounds=3)
    assert again.best_score == pytest.approx(6)
    assert len(again.seen) == 1


def test_a_missing_loss_is_a_key_error_that_lists_the_keys(run: Path, tmp_path: Path) -> None:
    strategy = CheckpointingStrategy(FedAvg(), run, module=module(tmp_path), loss_key="val-loss")
    with pytest.raises(KeyError, match=r"val-loss.*accuracy.*loss_key"):
        message.start(strategy, message.FakeGrid(losses([1]), 1), arrays=record(), evaluate_fn=None, num_rounds=1)


def test_parameters_that_do_not_fit_the_model_are_an_error_before_a_client_is_asked(run: Path, tmp_path: Path) -> None:
    grid = message.FakeGrid(message.average_client, 1)
    wrong = message.initial_arrays()
    with pytest.raises(ValueError, match=r"\(3, 4\) \| conv\.weight \(4, 3\)"):
        message.start(CheckpointingStrategy(FedAvg(), run, module=module(tmp_path)), grid, arrays=wrong)
    assert grid.sent == []


def test_the_state_checkpointer_says_where_the_run_lies(tmp_path: Path) -> None:
    place = tmp_path / "place"
    checkpointer = PerRoundStateCheckpointer(place)
    checkpointer.save_checkpoint("other", {"round": 3})
    strategy = CheckpointingStrategy(FedAvg(), module=module(tmp_path, state_checkpointer=checkpointer))
    message.start(strategy, message.FakeGrid(losses([1, 1]), 1), arrays=record(), evaluate_fn=None, num_rounds=2)
    assert CheckpointStore(place).latest().round == 2  # type: ignore[union-attr]
    assert checkpointer.load_checkpoint("other") == {"round": 3}
    with pytest.raises(ValueError, match="give one of the two"):
        CheckpointingStrategy(FedAvg(), "digits", module=module(tmp_path, state_checkpointer=checkpointer))
    relative = module(tmp_path, state_checkpointer=PerRoundStateCheckpointer(Path("states")))
    with pytest.raises(ValueError, match="relative"):
        CheckpointingStrategy(FedAvg(), module=relative)
