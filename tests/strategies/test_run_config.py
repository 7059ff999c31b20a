"""``from_run_config``: everything that ``flwr run --run-config`` can set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import FedAvg

from flwr_ckpt import CheckpointingStrategy, CheckpointMismatchError, CheckpointStore
from tests.lab.message import FakeGrid, average_client, start


def context(**run_config: Any) -> Context:
    config = {key.replace("_", "-"): value for key, value in run_config.items()}
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)


def test_everything_can_be_set(tmp_path: Path) -> None:
    strategy = CheckpointingStrategy.from_run_config(
        FedAvg(),
        context(
            checkpoint_run="cifar/lr-0.1",
            checkpoint_home=str(tmp_path / "home"),
            checkpoint_resume="auto",
            checkpoint_save_every=2,
            checkpoint_keep="latest:1|best:1:train/loss:max|every:4",
            checkpoint_seed=7,
            checkpoint_durable="background",
            checkpoint_on_error="raise",
            checkpoint_loss_key="loss",
            checkpoint_exclude="writer, strategy.cache",
            lr=0.1,
        ),
    )
    start(strategy, FakeGrid(average_client, 1), num_rounds=6)
    store = CheckpointStore(tmp_path / "home" / "cifar" / "lr-0.1")
    assert {0, 4, 6} <= {record.round for record in store.rounds()}
    assert 2 not in {record.round for record in store.rounds() if record.round not in (0, 2, 4, 6)}


def test_an_empty_string_is_unset_and_arguments_win(tmp_path: Path) -> None:
    strategy = CheckpointingStrategy.from_run_config(
        FedAvg(),
        context(checkpoint_run="digits", checkpoint_home=str(tmp_path), checkpoint_keep="", checkpoint_save_every=5),
        save_every=1,
    )
    start(strategy, FakeGrid(average_client, 1), num_rounds=3)
    assert [record.round for record in CheckpointStore(tmp_path / "digits").rounds()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"checkpoint_runn": "digits"}, "checkpoint-runn is not known"),
        ({}, "checkpoint-run is not set"),
        (
            {"checkpoint_run": "digits", "checkpoint_save_every": "often"},
            "checkpoint-save-every='often': .*whole number",
        ),
        ({"checkpoint_run": "digits", "checkpoint_save_every": 1.5}, "checkpoint-save-every=1.5: .*found a float"),
        ({"checkpoint_run": "digits", "checkpoint_save_every": 0}, "checkpoint-save-every=0: .*1 or more"),
        (
            {"checkpoint_run": "digits", "checkpoint_save_every": 2, "checkpoint_durable": "before-release"},
            "save_every=2",
        ),
        ({"checkpoint_run": "digits", "checkpoint_keep": "best"}, "checkpoint-keep='best'"),
        ({"checkpoint_run": "digits", "checkpoint_keep": "best:2:evaluate/loss:low"}, "checkpoint-keep="),
        ({"checkpoint_run": "digits", "checkpoint_keep": 3}, "checkpoint-keep=3: expected a string, found a int"),
        ({"checkpoint_run": "digits", "checkpoint_seed": "lucky"}, "checkpoint-seed='lucky': expected a whole number"),
        ({"checkpoint_run": "digits", "checkpoint_seed": True}, "checkpoint-seed=True: .*found a bool"),
        ({"checkpoint_run": "digits", "checkpoint_resume": "perhaps"}, "checkpoint-resume='perhaps': .*'must'"),
        ({"checkpoint_run": "digits", "checkpoint_durable": "now"}, "checkpoint-durable='now': .*'before-release'"),
        ({"checkpoint_run": "digits", "checkpoint_on_error": False}, "checkpoint-on-error=False: expected a string"),
        ({"checkpoint_run": "digits", "checkpoint_loss_key": 5}, "checkpoint-loss-key=5: expected a string"),
        ({"checkpoint_run": "digits", "checkpoint_exclude": 5}, "checkpoint-exclude=5: expected a string"),
        ({"checkpoint_run": "digits", "checkpoint_home": "relative"}, "relative"),
        ({"checkpoint_run": "../digits"}, "cannot be a run name"),
        ({"checkpoint_run": 3}, "checkpoint-run=3: expected a string"),
    ],
)
def test_a_wrong_value_is_an_error_before_round_one(config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CheckpointingStrategy.from_run_config(FedAvg(), context(**config))


def test_another_run_config_is_another_run(tmp_path: Path) -> None:
    def strategy(**config: Any) -> Any:
        return CheckpointingStrategy.from_run_config(
            FedAvg(), context(checkpoint_run="digits", checkpoint_home=str(tmp_path), **config)
        )

    start(strategy(lr=0.1, num_server_rounds=2), FakeGrid(average_client, 1), num_rounds=2)
    with pytest.raises(CheckpointMismatchError, match=r"lr.*0\.1 there, 0\.2 here"):
        start(strategy(lr=0.2, num_server_rounds=3), FakeGrid(average_client, 2), num_rounds=3)
    start(strategy(lr=0.1, num_server_rounds=3, checkpoint_keep="all"), FakeGrid(average_client, 2), num_rounds=3)
