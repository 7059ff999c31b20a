"""Arrays, tensors and Flower's records of them: what holds data rather than plain values.

In the tree they are nodes that name a blob; without a collector (in a baseline, which holds no data) the name is
left out. Torch is looked for among the loaded modules, never imported.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any, Protocol

import numpy as np

from .buffers import BlobCollector, is_fortran
from .flower import Array, ArrayRecord, Parameters
from .leaves import Node, base64_text, encode_dtype
from .paths import Names, Path
from .sharing import Sharing

ARRAY_KINDS = frozenset({"ndarray", "masked", "tensor", "Parameters", "Array", "ArrayRecord", "large bytearray"})
BYTES_KINDS = frozenset({"bytes", "bytearray", "large bytes"})

_LARGE_BYTES = 1024
# what any tool can read in the file; all else is stored as opaque bytes, its true type in the tree
_NUMPY_NAMES: dict[np.dtype[Any], str] = {
    np.dtype(name): name
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip
_TORCH_NAMES = frozenset({*_NUMPY_NAMES.values(), "bfloat16", "float8_e4m3fn", "float8_e5m2"})
ARRAY_CLASSES: dict[str, type[np.ndarray[Any, Any]]] = {"recarray": np.recarray, "matrix": np.matrix}


class Digests(Protocol):
    """Tells large ``bytes`` that are still the object they were at the baseline."""

    def of(self, data: bytes) -> str | None: ...


class ArrayEncoder:
    """Makes nodes of arrays, hands their data to the collector, and notes where they lie."""

    def __init__(self, collector: BlobCollector | None, sharing: Sharing, digests: Digests) -> None:
        self._collector = collector
        self._sharing = sharing
        self._digests = digests
        self._names = Names()
        self._known: dict[int, tuple[object, str]] = {}
        self._dtypes: dict[np.dtype[Any], Any] = {}
        self._storages: dict[int, Any] = {}  # of other devices, copied once

    def ndarray(self, array: np.ndarray[Any, Any], path: Path) -> Node | None:
        """Encode an array; ``None`` if it holds objects or is of a class that would be lost."""
        cls = type(array)
        if cls is np.ma.MaskedArray:
            return self._masked(array, path)
        if cls not in (np.ndarray, np.memmap, np.recarray, np.matrix):
            return None
        dtype = self._dtype(array.dtype)
        if dtype is None:
            return None
        node: dict[str, Any] = {"$": "ndarray", "dtype": dtype, "shape": list(array.shape)}
        if not array.flags.writeable:
            node["readonly"] = True
        if cls is not np.ndarray:
            if cls.__name__ in ARRAY_CLASSES:
                node["class"] = cls.__name__
            array = array.view(np.ndarray)
        self._elements(node, array, _NUMPY_NAMES.get(array.dtype, ""), path)
        return node

    def _dtype(self, dtype: np.dtype[Any]) -> Any:
        if dtype not in self._dtypes:
            self._dtypes[dtype] = encode_dtype(dtype)
        return self._dtypes[dtype]

    def _elements(self, node: dict[str, Any], array: np.ndarray[Any, Any], dtype: str, path: Path) -> None:
        """Hand over an array whose elements any tool calls `dtype`; without such a name, opaque bytes."""
        if is_fortran(array):
            node["order"], dtype = "F", ""
        self._sharing.note(node, array)
        if self._collector is not None:
            node["blob"] = self._names.unique(path.blob_name())
            self._collector.add(node["blob"], array, dtype=dtype, shape=array.shape if dtype else (array.nbytes,))

    def _masked(self, array: Any, path: Path) -> Node | None:
        data = self.ndarray(np.ma.getdata(array), path.attribute("data"))
        if data is None:
            return None
        mask = self.ndarray(np.ma.getmaskarray(array), path.attribute("mask"))
        fill = self.ndarray(np.asarray(array.fill_value), path.attribute("fill_value"))
        return {"$": "masked", "data": data, "mask": mask, "fill": fill, "hard": bool(array.hardmask)}

    def tensor(self, tensor: Any, path: Path) -> Node | None:
        """Encode a dense tensor; ``None`` for sparse, quantised, meta and lazily negated ones, and subclasses."""
        torch = sys.modules["torch"]
        parameter = type(tensor) is torch.nn.Parameter
        if not (parameter or type(tensor) is torch.Tensor) or tensor.layout is not torch.strided:
            return None
        if tensor.is_quantized or tensor.is_meta or tensor.is_neg():
            return None
        dtype = str(tensor.dtype).removeprefix("torch.")
        node: dict[str, Any] = {"$": "tensor", "dtype": dtype, "shape": list(tensor.shape)}
        node |= {"device": str(tensor.device), "grad": bool(tensor.requires_grad)}
        if parameter:
            node["parameter"] = True
        plain = tensor.detach()
        if plain.is_conj():
            node["conj"] = True
            plain = plain.conj()
        elements = self._on_cpu(plain).view(_torch_words(torch)[plain.element_size()]).numpy()
        self._elements(node, elements, dtype if dtype in _TORCH_NAMES else "", path)
        return node

    def _on_cpu(self, tensor: Any) -> Any:
        """The tensor, or one that lies in a copy of its memory as it does in its own."""
        if tensor.device.type == "cpu":
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage.cpu()
        empty = sys.modules["torch"].empty(0, dtype=tensor.dtype)
        copied = self._storages[storage.data_ptr()]
        return empty.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())

    def bytes_(self, data: bytes | bytearray, path: Path) -> Node:
        if len(data) < _LARGE_BYTES:
            node: dict[str, Any] = {"$": type(data).__name__, "v": base64_text(data)}
        else:
            node = {"$": f"large {type(data).__name__}", "nbytes": len(data)}
        if isinstance(data, bytearray):
            self._sharing.note(node, np.frombuffer(data, np.uint8))
        if len(data) < _LARGE_BYTES:
            return node
        if isinstance(data, bytes):
            digest = self._digests.of(data)
            if digest is not None:
                node["digest"] = digest
        if self._collector is not None:
            node["blob"] = self._opaque(data, path)
        return node

    def parameters(self, parameters: Parameters, path: Path) -> Node:
        node: dict[str, Any] = {"$": "Parameters", "type": parameters.tensor_type}
        if self._collector is not None:
            node["blobs"] = [
                self._file(tensor, path.item(f"{index:04d}")) for index, tensor in enumerate(parameters.tensors)
            ]
        return node

    def array(self, array: Array, path: Path) -> Node:
        node: dict[str, Any] = {"$": "Array", "dtype": array.dtype, "shape": list(array.shape), "stype": array.stype}
        if self._collector is not None:
            node["blob"] = self._file(array.data, path, array)
        return node

    def array_record(self, record: ArrayRecord, path: Path) -> Node:
        return {"$": "ArrayRecord", "v": [[key, self.array(array, path.item(key))] for key, array in record.items()]}

    def _file(self, data: Any, path: Path, array: Array | None = None) -> str:
        """Hand over bytes as they are; the same bytes under a second name are stored once."""
        known = self._known.get(id(data))
        if known is not None:
            return known[1]
        assert self._collector is not None
        name = self._names.unique(path.blob_name())
        self._known[id(data)] = (data, name)
        if array is None:
            self._collector.add(name, data, kind="npy")
        else:
            shape = tuple(array.shape)
            self._collector.add(name, data, kind="npy", dtype=array.dtype, shape=shape, stype=array.stype)
        return name

    def _opaque(self, data: bytes | bytearray, path: Path) -> str:
        assert self._collector is not None
        known = self._known.get(id(data))
        if known is not None:
            return known[1]
        name = self._names.unique(path.blob_name())
        self._known[id(data)] = (data, name)
        self._collector.add(name, data, shape=(len(data),))
        return name


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _torch_words(torch: Any) -> dict[int, Any]:
    """Types of each size that NumPy knows too: it has no bfloat16."""
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
