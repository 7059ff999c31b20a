"""A wrapped strategy that resumes from what is damaged or what somebody else wrote; and what is kept out of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAdam

from flwr_ckpt import CheckpointCorruptError, CheckpointError, CheckpointingStrategy, CheckpointMismatchError
from tests.lab.hostile import VALUES, body_of, places_in, replaced, write_sealed
from tests.lab.message import FakeGrid, FakeRun, average_client, start, told

Record = Callable[[str, object], None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "home" / "run"


def _serve(run: Path, grid: FakeGrid | None = None, **kwargs: Any) -> Any:
    return start(
        CheckpointingStrategy(FedAdam(eta=0.1), run, seed=1),
        grid or FakeGrid(average_client, 1),
        num_rounds=3,
        **kwargs,
    )


def _copied(run: Path, files: dict[Path, bytes]) -> Path:
    """The run as it was, under another name: an attempt to resume it leaves traces."""
    for path, data in files.items():
        (target := run.parent / "again" / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return run.parent / "again"


@pytest.mark.usefixtures("patient")
def test_a_run_whose_files_are_flipped_ends_as_it_had_ended(run: Path, record_property: Record) -> None:
    """Each file flipped at some bytes: what is passed over is trained again, to the same bits."""
    whole = told(_serve(run, evaluate_fn=None))
    (run / "round-00000003/g0001-end.manifest").unlink()
    files = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    tried = 0
    for path, data in files.items():
        for offset in (len(data) // 3, len(data) - 1):
            damaged = bytearray(data)
            damaged[offset] ^= 0x10
            copy = _copied(run, {**files, path: bytes(damaged)})
            assert told(_serve(copy, evaluate_fn=None)) == whole, (path, offset)
            tried += 1
            _remove(copy)
    record_property("counted", ("strategies resumed over a flipped byte", {"tried": tried, "lost": 0, "wrong": 0}))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.usefixtures("patient")
def test_documents_that_state_anything(run: Path, record_property: Record) -> None:
    """The run is resumed, or refused with an error of ours; no client is asked by a run that is refused."""
    _serve(run, evaluate_fn=None)
    (run / "round-00000003/g0001-end.manifest").unlink()
    files = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    newest = max(files, key=lambda path: (path.parent.name, path.name.endswith("evaluate.manifest")))
    body = body_of(newest)
    assert body["phase"] == "evaluate"
    places = [
        where for where in places_in(body) if where[:1] in (("documents",), ("outcomes",)) and "state" not in where
    ]
    tried = 0
    for number, where in enumerate(sorted(places, key=repr)):
        copy = _copied(run, files)
        write_sealed(copy / newest.relative_to(run), replaced(body, where, VALUES[number * 7 % len(VALUES)]))
        grid = FakeGrid(average_client, 2)
        try:
            _serve(copy, grid, evaluate_fn=None)
        except CheckpointError:
            assert not grid.sent
        tried += 1
        _remove(copy)
    record_property("counted", ("hostile documents resumed from", {"tried": tried, "other errors than ours": 0}))


@pytest.mark.parametrize("name", ["identity", "state", "baseline"])
def test_a_document_that_is_missing_is_named(name: str, run: Path) -> None:
    _serve(run, evaluate_fn=None)
    for path in run.glob("*/*.manifest"):
        body = body_of(path)
        body["documents"].pop(name, None)
        body["stored_documents"] = [entry for entry in body["stored_documents"] if entry["name"] != name]
        write_sealed(path, body)
    (run / "round-00000003/g0001-end.manifest").unlink()
    with pytest.raises(CheckpointCorruptError, match="identity" if name == "identity" else "state"):
        _serve(run, evaluate_fn=None)


# --- what is kept out ------------------------------------------------------------------------------------------------

SECRETS = {
    "api-key": "s3cr3t-value",
    "wandb_api_key": "s3cr3t-value",
    "db.password": "s3cr3t-value",
    "hf-token": "s3cr3t-value",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-value",
    "data-url": "https://me:s3cr3t-value@example.org/data?sig=s3cr3t-value",
}


def test_secrets_of_the_configuration_reach_neither_log_nor_manifest_nor_error(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the keys call a secret, and what of a URL may be one; configs that are sent to clients are state."""
    caplog.set_level(logging.DEBUG)
    config = {**SECRETS, "lr": 0.1, "data": "cifar"}
    _serve(run, FakeGrid(average_client, 1, run=FakeRun(override_config=config)))
    changed = {key: f"other-{value}" if isinstance(value, str) else 0.2 for key, value in config.items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        _serve(run, FakeGrid(average_client, 2, run=FakeRun(override_config=changed)))
    assert "'lr'" in str(caught.value)
    assert "'data'" in str(caught.value)
    assert "s3cr3t" not in str(caught.value) + caplog.text
    for path in run.rglob("*"):
        assert path.is_dir() or b"s3cr3t" not in path.read_bytes(), path


class _Keeps(FedAdam):
    """A strategy that holds a secret and changes it; that is its state, and no line of a log shows it."""

    def __init__(self, api_key: str) -> None:
        super().__init__(eta=0.1)
        self.api_key, self.name = api_key, api_key[:4]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.api_key, self.name = f"s3cr3t-{server_round}", f"n{server_round}"
        return super().aggregate_train(server_round, replies)


def test_a_secret_of_the_strategys_own_is_not_shown(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key, rounds in (("s3cr3t-first", 2), ("other-s3cr3t", 3)):
        start(CheckpointingStrategy(_Keeps(key), run), FakeGrid(average_client, 1), num_rounds=rounds)
    assert "strategy.api_key: another one is given now" in caplog.text
    assert "strategy.name: 'othe' is given now" in caplog.text
    assert "s3cr3t-" not in caplog.text
    assert "-s3cr3t" not in caplog.text


def test_numbers_are_compared_whatever_their_key(run: Path) -> None:
    """`max-token` is no secret."""
    _serve(run, FakeGrid(average_client, 1, run=FakeRun(override_config={"max-token": 3})))
    with pytest.raises(CheckpointMismatchError, match="max-token"):
        _serve(run, FakeGrid(average_client, 2, run=FakeRun(override_config={"max-token": 4})))


def test_the_first_commit_says_what_is_kept(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is: no names of clients, no file of the app, no environment."""
    caplog.set_level(logging.INFO)
    _serve(run, train_config=ConfigRecord({"lr": 0.1}))
    said = "\n".join(caplog.messages[: next(i for i, line in enumerate(caplog.messages) if "[ROUND 1" in line)])
    assert "strategy" in said
    assert "train_config" in said or "lr" in said
    manifest = (run / "round-00000003/g0001-end.manifest").read_bytes()
    documents = body_of(run / "round-00000003/g0001-end.manifest")["documents"]
    assert set(documents) <= {"identity", "state", "baseline", "nodes", "attempts", "choices"}
    for stranger in (b"HOME", b"PATH", b"environ"):
        assert stranger not in manifest.replace(str(run).encode(), b"")
