"""`export`: a model as one file, whole and exact, that never replaces another by mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_rig import blob, opened, ran
from safetensors import safe_open
from safetensors.numpy import load_file

from flwr_ckpt import CheckpointStore
from flwr_ckpt.store import Blob, Draft

ARRAYS = {
    "f": np.arange(6, dtype="f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype="f8").reshape(2, 3)),
    "big": np.arange(4, dtype=">i4"),
    "scalar": np.array(7, dtype="i8"),
    "empty": np.zeros((0, 3), "f2"),
    "flag": np.array([True, False]),
    "file": np.arange(3, dtype="u1"),
}


@pytest.fixture
def kinds(checkpoint_home: Path) -> Path:
    """A run with arrays of many kinds, some of them written in an earlier round."""
    folder = checkpoint_home / "kinds"
    opened(folder).commit(Draft(0, "initial", tuple(blob(*item) for item in ARRAYS.items()), ()))
    return folder


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found[name], array)


def test_safetensors(kinds: Path, tmp_path: Path) -> None:
    ended = ran("export", "kinds", "-o", tmp_path / "model.safetensors")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{tmp_path}/model.safetensors: round 0 of kinds, 7 arrays, ")
    same(load_file(tmp_path / "model.safetensors"), ARRAYS)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["model.safetensors"]


def test_npz(kinds: Path, tmp_path: Path) -> None:
    assert ran("export", "kinds", "-o", tmp_path / "model.npz").code == 0
    with np.load(tmp_path / "model.npz", allow_pickle=False) as found:
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_weights_of_torch(kinds: Path, tmp_path: Path) -> None:
    assert ran("export", "kinds", "-o", tmp_path / "model.pt").code == 0
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    same({name: tensor.numpy() for name, tensor in found.items()}, ARRAYS)


def test_the_round_that_was_asked_for(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.npz"
    for which, number in (("1", 1), ("latest", 3), ("best", 3)):
        assert ran("export", "digits", which, "--metric", "evaluate/loss", "-o", target, "--force").code == 0
        expected = CheckpointStore(run).load(number).arrays
        with np.load(target) as found:
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in expected.items()
            }


def test_a_file_that_is_there_stays(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.npz"
    target.write_text("mine")
    ended = ran("export", "digits", "-o", target)
    assert (ended.code, ended.err) == (1, f"flwr-ckpt: {target} is there already; --force replaces it\n")
    assert target.read_text() == "mine"
    assert ran("export", "digits", "-o", target, "--force").code == 0
    assert target.read_bytes().startswith(b"PK")


def test_a_failed_export_leaves_nothing(checkpoint_home: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    opened(checkpoint_home / "odd").commit(Draft(0, "initial", (blob("names", np.array(["a", "b"])),), ()))
    for suffix, hint in ((".safetensors", "export .npz"), (".pt", "export .npz")):
        ended = ran("export", "odd", "-o", target / f"model{suffix}")
        assert (ended.code, ended.err.count("\n"), hint in ended.err) == (1, 1, True)
    assert list(target.iterdir()) == []
    assert ran("export", "odd", "-o", target / "model.npz").code == 0


def test_what_numpy_lacks(checkpoint_home: Path, tmp_path: Path) -> None:
    expected = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    raw = expected.view(torch.uint8).numpy().tobytes()
    opened(checkpoint_home / "bf16").commit(Draft(0, "initial", (Blob("w", raw, "raw", "bfloat16", (2, 3)),), ()))
    assert ran("export", "bf16", "-o", tmp_path / "model.pt").code == 0
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["w"], expected)
    assert ran("export", "bf16", "-o", tmp_path / "model.safetensors").code == 0
    with safe_open(tmp_path / "model.safetensors", "pt") as found:
        assert torch.equal(found.get_tensor("w"), expected)
    ended = ran("export", "bf16", "-o", tmp_path / "model.npz")
    assert (ended.code, "which NumPy lacks: export .safetensors or .pt" in ended.err) == (1, True)


def test_without_torch_the_extra_is_named(kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ended = ran("export", "kinds", "-o", tmp_path / "model.pt")
    assert (ended.code, 'pip install "flwr-ckpt[torch]"' in ended.err) == (1, True)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("name", ["model", "model.pth", "model.onnx"])
def test_another_kind_of_file_is_one_line(name: str, run: Path, tmp_path: Path) -> None:
    ended = ran("export", "digits", "-o", tmp_path / name)
    assert (ended.code, "expected a name that ends in .safetensors, .pt, .npz" in ended.err) == (2, True)
