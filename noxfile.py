"""The tests on every pair of Python and Flower that exists, and the packages in empty environments.

``nox --list`` names the sessions; what stands after ``--`` goes to pytest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent

# Python 3.10 ended with Flower 1.31.
PAIRS = [
    (python, flower)
    for python in ("3.10", "3.11", "3.12", "3.13")
    for flower in ("1.22", "1.29", "1.41")
    if (python, flower) != ("3.10", "1.41")
]

# What comes with an extra (and nothing else brings), and the tests that it is there for.
OPTIONAL = ("dp_accounting", "matplotlib", "moto", "obstore", "opacus", "safetensors", "sklearn", "torch")
EXTRAS = {
    "": (set(), ["tests/store/test_checkpoint_store.py", "tests/strategies/test_message.py"]),
    "torch": ({"safetensors", "torch"}, ["tests/checkpointers", "tests/server_module/test_in_run.py"]),
    "opacus": ({"opacus", "safetensors", "torch"}, ["tests/checkpointers/test_opacus_models.py"]),
    "cloud": ({"obstore"}, ["tests/store/test_location.py"]),
    "plot": ({"matplotlib"}, ["tests/cli/test_looking.py"]),
    "all": (
        {"matplotlib", "obstore", "opacus", "safetensors", "torch"},
        ["tests/checkpointers", "tests/strategies/test_legacy.py"],
    ),
}

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True


@nox.session
@nox.parametrize(("python", "flower"), PAIRS, ids=[f"{python}, flwr {flower}" for python, flower in PAIRS])
def matrix(session: nox.Session, flower: str) -> None:
    """Test the core, which needs no torch, with one Python and one Flower, in process: no ``flwr run``."""
    session.install("--editable", ".[test]", f"flwr=={flower}.*")
    _test(session, {"safetensors"}, session.posargs or ["--ignore=tests/e2e"])


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution, and from it the wheel."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", "dist")


# By pip: it takes the torch that constraints.txt names from wherever it is told to look.
@nox.session(python="3.11", venv_backend="virtualenv", requires=["build"])
@nox.parametrize("extra", list(EXTRAS), ids=[extra or "none" for extra in EXTRAS])
def packages(session: nox.Session, extra: str) -> None:
    """Install the wheel with one extra in an empty environment, and test what is installed."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    session.install("--constraint", "constraints.txt", f"{wheel}[{extra}]" if extra else str(wheel))
    brought, tests = EXTRAS[extra]
    # An extra that brings more than it says would go unnoticed everywhere else.
    session.run("python", "-c", _CHECK_BROUGHT, *sorted(brought))
    session.install("--constraint", "constraints.txt", "hypothesis", "mypy", "psutil", "pytest", "pytest-xdist")
    # Away from the sources, which would be imported instead of what is installed.
    folder = Path(session.create_tmp()) / "away"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    session.chdir(folder)
    session.run("python", "-m", "mypy", "--strict", "tests/project/typed_user.py")
    _test(session, brought, session.posargs or tests)


_CHECK_BROUGHT = """
import sys
from importlib.util import find_spec

optional = {"matplotlib", "obstore", "opacus", "safetensors", "torch"}
found = {name for name in optional if find_spec(name)}
sys.exit(f"expected {sys.argv[1:]}, found {sorted(found)}" if found != set(sys.argv[1:]) else 0)
"""


@nox.session
def trackers(session: nox.Session) -> None:
    """Write the record of a run that was killed to each tracker of ``examples/trackers``, and read it back."""
    session.install("--editable", ".[test]", "mlflow", "tensorboard", "wandb")
    session.run("python", "-m", "pytest", "-q", "examples/trackers", *session.posargs)


def _test(session: nox.Session, brought: set[str], arguments: list[str]) -> None:
    without = [f"--without={name}" for name in OPTIONAL if name not in brought]
    session.run("python", "-m", "pytest", "-q", "-n", "2", "-m", "not slow", *without, *arguments)
