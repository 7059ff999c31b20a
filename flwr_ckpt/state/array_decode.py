"""Arrays, tensors and Flower's records of them, made of their nodes again."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from flwr_ckpt.store.draft import Buffer

from .arrays import ARRAY_CLASSES
from .flower import Array, ArrayRecord, Parameters
from .leaves import base64_bytes, decode_dtype
from .sharing import Memory

_NUMPY_WORDS = {size: np.dtype(name) for size, name in ((1, "u1"), (2, "i2"), (4, "i4"), (8, "i8"), (16, "c16"))}


class ArrayDecoder:
    """Makes arrays of nodes again: new ones that the caller owns, and that share memory as they did."""

    def __init__(self, read: Mapping[str, Buffer]) -> None:
        self._read = read
        self._bytes: dict[str, bytes] = {}
        self._memories: dict[str, Memory] = {}
        self._owners: dict[str, bytearray] = {}
        self._on_device: dict[tuple[str, str], Any] = {}

    def decode(self, node: dict[str, Any]) -> Any:
        return _DECODERS[node["$"]](self, node)

    def nbytes(self, blob: str) -> int:
        return memoryview(self._read[blob]).nbytes

    def put_into(self, blob: str, memory: Memory) -> None:
        """Fill `memory` with what is stored, and make the arrays that share the blob as views of it."""
        np.copyto(memory, np.frombuffer(self._read[blob], np.uint8))
        self._memories[blob] = memory

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is made meanwhile shares no memory with what is made otherwise."""
        kept = self._memories, self._owners, self._on_device
        self._memories, self._owners, self._on_device = {}, {}, {}
        try:
            yield
        finally:
            self._memories, self._owners, self._on_device = kept

    def _ndarray(self, node: dict[str, Any]) -> np.ndarray[Any, Any]:
        array = self._elements(node, decode_dtype(node["dtype"]))
        if "class" in node:
            array = array.view(ARRAY_CLASSES[node["class"]])
        if node.get("readonly"):
            array.flags.writeable = False
        return array

    def _elements(self, node: dict[str, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        shape, order = tuple(node["shape"]), node.get("order", "C")
        array: np.ndarray[Any, Any]
        if "offset" in node:
            array = np.ndarray(shape, dtype, self._memory(node).data, node["offset"], node["strides"])
            return array
        needed = math.prod(shape) * dtype.itemsize
        data = memoryview(self._read[node["blob"]]).cast("B") if needed else memoryview(b"")
        if data.nbytes != needed:
            raise ValueError(
                f"array {node['blob']!r} has {data.nbytes} bytes where {needed} are needed for {dtype} {shape}"
            )
        array = np.empty(shape, dtype, order=order)
        if array.nbytes:
            np.copyto(array, np.ndarray(shape, dtype, data, order=order), casting="no")
        return array

    def _memory(self, node: dict[str, Any]) -> Memory:
        """The one memory of all arrays that name the blob."""
        name = node["blob"]
        if name not in self._memories:
            if node.get("owner") == "bytearray":
                self._owners[name] = bytearray(self._read[name])
                self._memories[name] = np.frombuffer(self._owners[name], np.uint8)
            else:
                self._memories[name] = np.frombuffer(self._read[name], np.uint8).copy()
        return self._memories[name]

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
        if torch.device(node["device"]).type != "cpu" and "offset" in node:
            tensor = self._in_device_memory(torch, node, dtype)
        else:
            words = self._elements(node, _NUMPY_WORDS[torch.empty(0, dtype=dtype).element_size()])
            tensor = torch.from_numpy(words).view(dtype).to(node["device"])
        if node.get("conj"):
            tensor = tensor.conj()
        if node.get("parameter"):
            return torch.nn.Parameter(tensor, requires_grad=node["grad"])
        return tensor.requires_grad_(node["grad"])

    def _in_device_memory(self, torch: Any, node: dict[str, Any], dtype: Any) -> Any:
        key = node["blob"], node["device"]
        if key not in self._on_device:
            self._on_device[key] = torch.from_numpy(self._memory(node)).to(node["device"])
        empty = torch.empty(0, dtype=dtype, device=node["device"])
        offset, *strides = (nbytes // empty.element_size() for nbytes in (node["offset"], *node["strides"]))
        return empty.set_(self._on_device[key].untyped_storage(), offset, tuple(node["shape"]), tuple(strides))

    def _large_bytes(self, node: dict[str, Any]) -> bytes:
        return self._file(node["blob"])

    def _large_bytearray(self, node: dict[str, Any]) -> bytearray:
        if "offset" in node:
            self._memory(node)
            return self._owners[node["blob"]]
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
