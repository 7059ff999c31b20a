"""Who may read a run: its home is private, and what lies in it has the modes that the user's umask says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_rig import initial, later, train

from flwr_ckpt.store import KeepAll, RunWriter, locate, prepare
from flwr_ckpt.store.format import history

pytestmark = pytest.mark.usefixtures("patient_disk")


@pytest.fixture
def restored_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("restored_umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_and_folders_follow_the_umask_in_a_private_home(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_ROUNDS", 1)
    os.umask(umask)
    location = locate("group/digits", tmp_path / "home")
    prepare(location)
    writer = RunWriter.open(location, KeepAll())
    writer.commit(initial())
    for server_round in (1, 2, 3):
        writer.commit(train(server_round))
        writer.commit(later(server_round))
    assert _mode(tmp_path / "home") == 0o700
    found = list((tmp_path / "home").rglob("*"))
    assert {path.name for path in found} >= {"group", "digits", "generations", "history", "0001"}
    for path in found:
        assert _mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.usefixtures("restored_umask")
def test_a_home_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o750)
    prepare(locate("digits", tmp_path / "home"))
    assert _mode(tmp_path / "home") == 0o750


@pytest.mark.parametrize("url", ["s3://me:s3cr3t@bucket/runs/x", "s3://bucket/runs/x?token=s3cr3t", "gs://b/x#s3cr3t"])
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    for run, home in ((url, None), ("digits", url)):
        with pytest.raises(ValueError, match="credentials") as caught:
            locate(run, home)
        assert "s3cr3t" not in str(caught.value)
