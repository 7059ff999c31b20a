"""Arrays, tensors and Flower's records of them: what holds data rather than plain values.

In the tree they are nodes that name a blob; without a collector (in a baseline, which holds no data) the name is
left out. Torch is looked for among the loaded modules and imported only to make a tensor again.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from flwr_ckpt.store.draft import Buffer

from .buffers import BlobCollector, is_fortran
from .flower import Array, ArrayRecord, Parameters
from .leaves import Node, base64_bytes, base64_text, decode_dtype, encode_dtype
from .paths import Names, Path

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
_ARRAY_CLASSES: dict[str, type[np.ndarray[Any, Any]]] = {"recarray": np.recarray, "matrix": np.matrix}


class Digests(Protocol):
    """Tells large ``bytes`` that are still the object they were at the baseline."""

    def of(self, data: bytes) -> str | None: ...


class ArrayEncoder:
    """Makes nodes of arrays and hands their data to the collector."""

    def __init__(self, collector: BlobCollector | None, names: Names, digests: Digests) -> None:
        self._collector = collector
        self._names = names
        self._digests = digests
        self._known: dict[int, tuple[object, str]] = {}

    def ndarray(self, array: np.ndarray[Any, Any], path: Path) -> Node | None:
        """Encode an array; ``None`` if it holds objects or is of a class that would be lost."""
        name = type(array).__name__
        if isinstance(array, np.ma.MaskedArray):
            return self._masked(array, path) if type(array) is np.ma.MaskedArray else None
        if type(array) not in (np.ndarray, np.memmap, np.recarray, np.matrix):
            return None
        dtype = encode_dtype(array.dtype)
        if dtype is None:
            return None
        node: dict[str, Any] = {"$": "ndarray", "dtype": dtype, "shape": list(array.shape)}
        if is_fortran(array):
            node["order"] = "F"
        if not array.flags.writeable:
            node["readonly"] = True
        if name in _ARRAY_CLASSES:
            node["class"] = name
        if self._collector is not None:
            plain = array.view(np.ndarray)
            dtype_name = "" if "order" in node else _NUMPY_NAMES.get(array.dtype, "")
            shape = array.shape if dtype_name else (array.nbytes,)
            node["blob"] = self._names.unique(path.blob_name())
            self._collector.add(node["blob"], plain, dtype=dtype_name, shape=shape)
        return node

    def _masked(self, array: np.ma.MaskedArray[Any, Any], path: Path) -> Node | None:
        data = self.ndarray(np.ma.getdata(array), path.attribute("data"))
        if data is None:
            return None
        mask = self.ndarray(np.ma.getmaskarray(array), path.attribute("mask"))
        fill = self.ndarray(np.asarray(array.fill_value), path.attribute("fill_value"))
        return {"$": "masked", "data": data, "mask": mask, "fill": fill, "hard": bool(array.hardmask)}

    def tensor(self, tensor: Any, path: Path) -> Node | None:
        """Encode a dense tensor; ``None`` for sparse, quantised and meta tensors and foreign subclasses."""
        torch = sys.modules["torch"]
        dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
        parameter = type(tensor) is torch.nn.Parameter
        if not dense or not (parameter or type(tensor) is torch.Tensor):
            return None
        dtype = str(tensor.dtype).removeprefix("torch.")
        node: dict[str, Any] = {"$": "tensor", "dtype": dtype, "shape": list(tensor.shape)}
        node |= {"device": str(tensor.device), "grad": bool(tensor.requires_grad)}
        if parameter:
            node["parameter"] = True
        if self._collector is not None:
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            fits = dtype in _TORCH_NAMES
            data = plain.reshape(-1).view(torch.uint8).numpy()
            node["blob"] = self._names.unique(path.blob_name())
            shape = tuple(tensor.shape) if fits else (data.nbytes,)
            self._collector.add(node["blob"], data, dtype=dtype if fits else "", shape=shape)
        return node

    def bytes_(self, data: bytes | bytearray, path: Path) -> Node:
        if len(data) < _LARGE_BYTES:
            return {"$": type(data).__name__, "v": base64_text(data)}
        node: dict[str, Any] = {"$": f"large {type(data).__name__}", "nbytes": len(data)}
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


class ArrayDecoder:
    """Makes arrays of nodes again; every call makes a new one that the caller owns."""

    def __init__(self, read: Mapping[str, Buffer]) -> None:
        self._read = read
        self._bytes: dict[str, bytes] = {}

    def decode(self, node: dict[str, Any]) -> Any:
        return _DECODERS[node["$"]](self, node)

    def _ndarray(self, node: dict[str, Any]) -> np.ndarray[Any, Any]:
        dtype, shape = decode_dtype(node["dtype"]), tuple(node["shape"])
        order = node.get("order", "C")
        array = np.empty(shape, dtype, order=order)
        data = memoryview(self._read[node["blob"]]).cast("B") if array.nbytes else memoryview(b"")
        if data.nbytes != array.nbytes:
            raise ValueError(
                f"array {node['blob']!r} has {data.nbytes} bytes where {array.nbytes} are needed for {dtype} {shape}"
            )
        if array.nbytes:
            np.copyto(array, np.ndarray(shape, dtype, data, order=order), casting="no")
        if "class" in node:
            array = array.view(_ARRAY_CLASSES[node["class"]])
        if node.get("readonly"):
            array.flags.writeable = False
        return array

    def _masked(self, node: dict[str, Any]) -> np.ndarray[Any, Any]:
        fill: Any = self._ndarray(node["fill"])[()]
        array: np.ma.MaskedArray[Any, Any] = np.ma.MaskedArray(
            self._ndarray(node["data"]), mask=self._ndarray(node["mask"]), hard_mask=node["hard"]
        )
        np.ma.set_fill_value(array, fill)
        return array

    def _tensor(self, node: dict[str, Any]) -> Any:
        torch = importlib.import_module("torch")
        dtype = getattr(torch, node["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"this torch has no dtype {node['dtype']!r}")
        tensor = torch.empty(tuple(node["shape"]), dtype=dtype)
        if tensor.numel():
            data = np.frombuffer(self._read[node["blob"]], np.uint8)
            np.copyto(tensor.reshape(-1).view(torch.uint8).numpy(), data)
        if torch.device(node["device"]).type != "cpu":
            tensor = tensor.to(node["device"])
        if node.get("parameter"):
            return torch.nn.Parameter(tensor, requires_grad=node["grad"])
        return tensor.requires_grad_(node["grad"])

    def _large_bytes(self, node: dict[str, Any]) -> bytes:
        return self._file(node["blob"])

    def _large_bytearray(self, node: dict[str, Any]) -> bytearray:
        return bytearray(self._read[node["blob"]])

    def _parameters(self, node: dict[str, Any]) -> Parameters:
        return Parameters(tensors=[self._file(name) for name in node["blobs"]], tensor_type=node["type"])

    def _array(self, node: dict[str, Any]) -> Array:
        data = self._file(node["blob"])
        return Array(dtype=node["dtype"], shape=tuple(node["shape"]), stype=node["stype"], data=data)

    def _array_record(self, node: dict[str, Any]) -> ArrayRecord:
        record = ArrayRecord()
        for key, array in node["v"]:
            record[key] = self._array(array)
        return record

    def _file(self, name: str) -> bytes:
        """Immutable, so that one object serves every place that held it."""
        if name not in self._bytes:
            self._bytes[name] = bytes(self._read[name])
        return self._bytes[name]


_DECODERS: dict[str, Any] = {
    "ndarray": ArrayDecoder._ndarray,
    "masked": ArrayDecoder._masked,
    "tensor": ArrayDecoder._tensor,
    "large bytes": ArrayDecoder._large_bytes,
    "large bytearray": ArrayDecoder._large_bytearray,
    "bytes": lambda _, node: base64_bytes(node["v"]),
    "bytearray": lambda _, node: bytearray(base64_bytes(node["v"])),
    "Parameters": ArrayDecoder._parameters,
    "Array": ArrayDecoder._array,
    "ArrayRecord": ArrayDecoder._array_record,
}
