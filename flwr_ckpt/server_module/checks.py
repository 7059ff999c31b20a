"""Wrong ways to put a module together, said when that happens."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..checkpointers import TorchModuleCheckpointer


def check_methods(exchanger: object, methods: Sequence[str], owner: str) -> None:
    """Check that an exchanger, if there is one, has the methods that are called.

    Raises
    ------
    TypeError
        If it has not.
    """
    missing = [name for name in methods if not callable(getattr(exchanger, name, None))]
    if exchanger is not None and missing:
        raise TypeError(
            f"the parameter_exchanger, a {type(exchanger).__name__}, has no {' and no '.join(missing)}; {owner} needs "
            f"{', '.join(methods)}"
        )


def check_model(model: object) -> None:
    """Check that there is a model for model checkpointers.

    Raises
    ------
    ValueError
        If there is none.
    """
    if model is None:
        raise ValueError(
            "there are model checkpointers and no model to put parameters into; give model=, or override "
            "_validate_model_checkpointer_components where the model comes from elsewhere"
        )


def check_exchanger(exchanger: object) -> None:
    """Check that there is an exchanger for model checkpointers.

    Raises
    ------
    ValueError
        If there is none.
    """
    if exchanger is None:
        raise ValueError(
            "there are model checkpointers and no parameter_exchanger to put parameters into the model with; give "
            "parameter_exchanger=, or override _validate_model_checkpointer_components where none is needed"
        )


def check_paths(checkpointers: Sequence[TorchModuleCheckpointer]) -> None:
    """Check that no two model checkpointers write to one path.

    Raises
    ------
    ValueError
        If two do.
    """
    paths = [os.path.abspath(checkpointer.checkpoint_path) for checkpointer in checkpointers]
    shared = sorted({path for path in paths if paths.count(path) > 1})
    if shared:
        raise ValueError(
            f"two model checkpointers write to {', '.join(shared)}, and would overwrite each other's models; the paths "
            f"have to be unique, and are: {', '.join(paths)}"
        )


def check_types(checkpointers: Sequence[object], expected: type, owner: str) -> None:
    """Check that all model checkpointers are of the kind that can save the model.

    Raises
    ------
    TypeError
        If one is not.
    """
    others = [type(checkpointer).__name__ for checkpointer in checkpointers if not isinstance(checkpointer, expected)]
    if others:
        raise TypeError(f"{', '.join(others)} cannot save the model of {owner}; use {expected.__name__} or its kin")
