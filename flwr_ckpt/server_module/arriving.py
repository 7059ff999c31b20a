"""What a server holds, as the lists that hydration takes: legacy ``Parameters``, or a message API ``ArrayRecord``."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Array, ArrayRecord
from flwr.common import NDArrays, Parameters

from flwr_ckpt.store import npy_array

_NPY = "numpy.ndarray"  # what Flower calls a serialised .npy file
_WRAPPED = "_module."  # what Opacus puts before every name of the model that it wraps
_MOST_NAMES = 8


class NamedWeights(Parameters):
    """The weights of a whole model and nothing packed beside them: they came under the model's own names."""


def to_ndarrays(parameters: Parameters) -> NDArrays:
    """Read the arrays out of ``Parameters``; in a run this is done by the writer's thread, beside Flower's.

    Raises
    ------
    ValueError
        If its tensors are not serialised arrays.
    """
    arrays = []
    for index, tensor in enumerate(parameters.tensors):
        array = npy_array(tensor)
        if array is None:
            raise ValueError(
                f"Parameters of {len(parameters.tensors)} tensors and tensor_type {parameters.tensor_type!r} do not "
                f"hold NumPy arrays, as a model's weights do: tensor {index} is none, or is not there to its end"
            )
        arrays.append(array)
    return arrays


def to_parameters(server_parameters: Parameters | ArrayRecord, names: Sequence[str] | None) -> Parameters:
    """Turn what either API hands over into ``Parameters``, in the order in which they are exchanged.

    Parameters
    ----------
    server_parameters : Parameters or ArrayRecord
        A record goes by name where its names are the model's, by position where they are 0, 1, ….
    names : sequence of str or None
        The model's names in their order; ``None`` where there is no model, and a record's own order has to do.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If a record goes neither by name nor by position, or holds other than NumPy's arrays.
    """
    if isinstance(server_parameters, Parameters):
        return server_parameters
    if not isinstance(server_parameters, ArrayRecord):
        raise TypeError(
            f"server_parameters is a {type(server_parameters).__name__}; Flower's Parameters or ArrayRecord is needed"
        )
    if names is None:
        return Parameters(_tensors(server_parameters, list(server_parameters)), _NPY)
    by_bare_name = {_bare(name): name for name in server_parameters}
    if len(by_bare_name) == len(server_parameters) and by_bare_name.keys() == {_bare(name) for name in names}:
        return NamedWeights(_tensors(server_parameters, [by_bare_name[_bare(name)] for name in names]), _NPY)
    positions = [str(i) for i in range(len(server_parameters))]
    if server_parameters.keys() == set(positions):
        return Parameters(_tensors(server_parameters, positions), _NPY)
    raise ValueError(
        f"the names of the ArrayRecord are neither the model's nor 0, 1, …; it holds {_some(list(server_parameters))}, "
        f"and the model {_some(names)}"
    )


def _tensors(record: ArrayRecord, names: Sequence[str]) -> list[bytes]:
    return [_tensor(name, record[name]) for name in names]


def _tensor(name: str, array: Array) -> bytes:
    if array.stype != _NPY:
        raise ValueError(f"{name}: an array of stype {array.stype!r} was given; {_NPY!r} was expected")
    return bytes(array.data)  # in deployment a view of what was received; bytes are not copied


def _bare(name: str) -> str:
    return name.removeprefix(_WRAPPED)


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _MOST_NAMES else ""
    return f"{len(names)} arrays ({', '.join(names[:_MOST_NAMES])}{more})"
