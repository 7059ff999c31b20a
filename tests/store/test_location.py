"""What a user may write as a run, and where it leads."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from flwr_ckpt.store import Location, locate, prepare
from flwr_ckpt.store.places import mounts
from flwr_ckpt.store.places.location import refuse_url


@pytest.fixture(autouse=True)
def on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be said of where these tests run: in a container, or with their temporary folder in memory."""
    monkeypatch.setattr(mounts, "MOUNT_TABLE", tmp_path / "no-mount-table")


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", ["digits", "cifar/lr-0.1", "a=1/b_2/c.3", ".hidden", "round", "rounds-1", "x" * 255])
def test_a_run_name_lies_under_the_given_home(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    location = locate(name, home)
    assert location.folder == home / name
    assert (location.where, location.label, location.home) == (str(home / name), name, str(home))
    assert not home.exists()


def test_home_comes_from_argument_then_environment_then_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FLWR_CKPT_HOME", raising=False)
    default = locate("digits")
    assert default.folder == tmp_path / ".flwr_ckpt" / "digits"
    assert "~/.flwr_ckpt" in default.source

    monkeypatch.setenv("FLWR_CKPT_HOME", "")
    assert locate("digits") == replace(default, source=locate("digits").source)

    monkeypatch.setenv("FLWR_CKPT_HOME", "/from/environment")
    assert locate("digits").folder == Path("/from/environment/digits")
    assert "$FLWR_CKPT_HOME" in locate("digits").source
    assert locate("digits", "/given").folder == Path("/given/digits")


def test_an_absolute_path_is_taken_as_it_is() -> None:
    for given in ("/data/run one", Path("/data/run one"), PurePosixPath("/data/run one")):
        location = locate(given, "/home")
        assert location == Location("/data/run one", "/data/run one", location.source)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a//b", "empty"),
        ("a/", "empty"),
        (".", "dots"),
        ("..", "dots"),
        ("a/../b", "dots"),
        ("...", "dots"),
        ("./a", "dots"),
        ("a b", "other characters"),
        ("ä", "other characters"),
        ("a\n", "other characters"),
        ("a\\b", "other characters"),
        ("C:", "other characters"),
        ("~/runs", "expanduser"),
        ("generations", "own files"),
        ("a/generations", "own files"),
        ("history/a", "own files"),
        ("round-00000001", "own files"),
        ("a/round-1/b", "own files"),
        ("x" * 256, "longer"),
    ],
)
def test_what_is_no_name_is_refused_with_why(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        locate(name, "/home")
    assert repr(name) in str(caught.value)
    assert "working folder is not yours" in str(caught.value)


@pytest.mark.parametrize("path", [Path("digits"), Path("a/b"), Path("."), Path("../a")])
def test_a_relative_pathlike_is_refused_with_why(path: Path) -> None:
    with pytest.raises(ValueError, match="working folder is not yours"):
        locate(path, "/home")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("s3://bucket/runs/digits", "s3://bucket/runs/digits"),
        ("gs://b/x", "gs://b/x"),
        ("az://container/x", "az://container/x"),
        ("memory://any/x", "memory://any/x"),
        ("S3://Bucket/X/", "s3://Bucket/X"),
    ],
)
def test_a_url_has_one_spelling(given: str, where: str) -> None:
    location = locate(given, "/home")
    assert (location.where, location.folder, location.home) == (where, None, None)
    assert str(location) == where


@pytest.mark.parametrize("home", ["s3://bucket", "s3://bucket/", "s3://bucket/flwr"])
def test_a_home_may_be_a_url(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location = locate("cifar/digits", home)
    assert location.where == home.rstrip("/") + "/cifar/digits"
    assert location.home == home.rstrip("/")
    monkeypatch.setenv("FLWR_CKPT_HOME", home)
    assert locate("cifar/digits").where == location.where


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///tmp/x", "s3://, gs://, az://, memory://"),
        ("https://host/x", "s3://, gs://, az://, memory://"),
        ("s3:///x", "empty"),
        ("s3://bucket//x", "empty"),
        ("s3://bucket/a b", "other characters"),
        ("s3://bucket/../x", "dots"),
        ("s3://bucket/x/round-1", "own files"),
    ],
)
def test_a_url_of_nothing_is_refused_with_why(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        locate(url)
    with pytest.raises(ValueError, match=rf"the checkpoint home .*{why}"):
        locate("digits", url)


def test_a_run_needs_a_folder_in_its_bucket() -> None:
    with pytest.raises(ValueError, match="below the bucket, as in 's3://bucket/digits'"):
        locate("s3://bucket")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hid/den@bucket/x",
        "az://container/x?sig=hidden",
        "s3://bucket/x#hidden",
        "s3://KEY:hid\0den@bucket/x",
        "nonsense://KEY:hidden@bucket/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="run '") as run:
        locate(url)
    assert "hid" not in str(run.value)
    with pytest.raises(ValueError, match="credentials or a query") as home:
        locate("digits", url)
    assert "hid" not in str(home.value)


@pytest.mark.parametrize(
    "folder", ["s3://bucket/x", Path("gs://bucket/x"), "az://key:hidden@x", "https://host/x?hidden"]
)
def test_what_has_to_be_a_folder_on_a_disk_is_no_url(folder: str | Path) -> None:
    with pytest.raises(ValueError, match=r"is a URL.*a folder on a disk") as caught:
        refuse_url(folder)
    assert "hidden" not in str(caught.value)


def test_a_folder_on_a_disk_may_have_any_name() -> None:
    for folder in ("/data/s3:/x", "relative", Path("/x"), "", "C:/x"):
        refuse_url(folder)


@pytest.mark.parametrize("text", ["/", "//", "/a\0b", "a\0b"])
def test_paths_that_cannot_be_a_run_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run "):
        locate(text)


@pytest.mark.parametrize("other", [None, 3, b"digits", ["digits"]])
def test_other_types_are_a_type_error(other: object) -> None:
    with pytest.raises(TypeError, match="expected a run name"):
        locate(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("home", ["relative/home", "", "~/home"])
def test_a_relative_home_is_refused(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        locate("digits", home)
    monkeypatch.setenv("FLWR_CKPT_HOME", home or "x")
    with pytest.raises(ValueError, match=r"\$FLWR_CKPT_HOME.*not an absolute path"):
        locate("digits")


def test_prepare_makes_the_home_private_and_not_the_run(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    assert prepare(locate("digits", home)) == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert everything_below(tmp_path) == {tmp_path / "deep", home}
    assert prepare(locate("digits", home)) == []


def test_prepare_leaves_an_existing_home_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    prepare(locate("digits", tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_prepare_makes_nothing_for_an_absolute_path(tmp_path: Path) -> None:
    prepare(locate(tmp_path / "a" / "run"))
    assert everything_below(tmp_path) == set()


@pytest.mark.parametrize("where", ["home", "home/cifar", "home/cifar/digits"])
def test_a_file_where_a_folder_should_be(where: str, tmp_path: Path) -> None:
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    with pytest.raises(NotADirectoryError, match=f"{file} is a file"):
        prepare(locate("cifar/digits", tmp_path / "home"))


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="leads nowhere"):
        prepare(locate("digits", tmp_path / "home"))


@pytest.mark.parametrize("table", ["[tool.flwr.app]", "[tool.flwr.app.components]", '  [ tool . flwr . app ] # "'])
def test_inside_a_flower_app_is_refused(table: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n{table}\npublisher = "me"\n')
    before = everything_below(tmp_path)
    for location in (locate(tmp_path / "runs" / "digits"), locate("digits", tmp_path / "home"), locate(tmp_path)):
        with pytest.raises(ValueError, match="Flower app"):
            prepare(location)
    assert everything_below(tmp_path) == before


def test_inside_a_flower_app_by_a_link_is_refused(tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "data").mkdir(parents=True)
    (app / "pyproject.toml").write_text("[tool.flwr.app]\n")
    (tmp_path / "link").symlink_to(app / "data")
    with pytest.raises(ValueError, match="Flower app"):
        prepare(locate(tmp_path / "link" / "digits"))


def test_inside_another_python_project_is_fine(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("# not [tool.flwr.app]\n[tool.flwr.federations]\n[tool.ruff]\n")
    assert prepare(locate(tmp_path / "digits")) == []


def test_a_run_inside_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar" / "generations").mkdir(parents=True)
    for name in ("cifar/lr-0.1", "cifar/lr/0.1"):
        with pytest.raises(ValueError, match=r"inside the run .*cifar"):
            prepare(locate(name, tmp_path))
    assert prepare(locate("cifar", tmp_path)) == []


def test_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "cifar" / "lr-0.1" / "generations").mkdir(parents=True)
    for name in ("sweep", "sweep/cifar"):
        with pytest.raises(ValueError, match=r"holds a run, .*lr-0\.1"):
            prepare(locate(name, tmp_path))
    assert prepare(locate("sweep/cifar/lr-0.2", tmp_path)) == []


@pytest.fixture
def mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def write(*lines: str) -> None:
        table = tmp_path / "mountinfo"
        table.write_text("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + "".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(mounts, "MOUNT_TABLE", table)

    return write


@pytest.mark.parametrize(("kind", "said"), [("tmpfs", "memory"), ("ramfs", "memory"), ("overlay", "container")])
def test_a_place_that_looks_temporary_is_warned_about(
    kind: str, said: str, tmp_path: Path, mount_table: Callable[..., None]
) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    escaped = str(folder).replace(" ", r"\040")
    mount_table(f"30 27 0:27 / {escaped} rw shared:1 master:2 - {kind} none rw", "broken line")
    (warning,) = prepare(locate(folder / "deep" / "digits"))
    assert said in warning
    assert prepare(locate(tmp_path / "digits")) == []


def test_a_volume_inside_a_containers_layer_is_fine(tmp_path: Path, mount_table: Callable[..., None]) -> None:
    mount_table("28 1 0:30 / / rw - overlay overlay rw", f"31 28 8:1 / {tmp_path} rw - ext4 /dev/sdb rw")
    assert prepare(locate(tmp_path / "digits")) == []
    assert "container" in prepare(locate("/usr/digits"))[0]


def test_without_a_mount_table_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNT_TABLE", tmp_path / "absent")
    assert prepare(locate(tmp_path / "digits")) == []


def test_a_read_only_place_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    read_only = os.statvfs_result([*real[:8], real.f_flag | os.ST_RDONLY, real.f_namemax])
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    (warning,) = prepare(locate(tmp_path / "digits"))
    assert "read-only" in warning


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Run as a user whom permissions bind: root may do everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: the parents of tmp_path are for this user alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("mode", [0o500, 0o300, 0o600, 0o000])
@pytest.mark.parametrize("run", ["locked", "locked/new"])
def test_a_folder_without_permission_is_named(mode: int, run: str, open_folder: Path) -> None:
    locked = open_folder / "locked"
    locked.mkdir()
    locked.chmod(mode if os.geteuid() else 0o700)
    with without_privileges(), pytest.raises(PermissionError, match=f"may not .* {locked}"):
        prepare(locate(open_folder / run))
    locked.chmod(0o700)
    assert everything_below(open_folder) == {locked}


def test_a_run_of_somebody_else_is_named(open_folder: Path) -> None:
    run = open_folder / "run"
    (run / "generations").mkdir(parents=True)
    run.chmod(0o777)
    (run / "generations").chmod(0o500 if os.geteuid() else 0o755)
    with without_privileges(), pytest.raises(PermissionError, match=rf"{run}/generations \(owner {os.getuid()}, mode"):
        prepare(locate(run))


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=f"the checkpoint home {tmp_path}/home cannot be made: .*No space"):
        prepare(locate("digits", tmp_path / "home"))
