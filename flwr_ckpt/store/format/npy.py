"""``.npy`` files, as far as the store looks into them: where the header ends, and what safetensors could call it."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from ..draft import Buffer
from .records import Entry

_MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 13
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{2,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]*)\), *\} *\n"
)
_NATIVE_NPY = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8",
    "<u8": "U64", "<u4": "U32", "<u2": "U16", "|u1": "U8", "|b1": "BOOL", "<c8": "C64",
}  # fmt: skip
_NATIVE_RAW = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


def safetensors_type(dtype: str) -> str | None:
    """Say what safetensors calls elements, given as NumPy (``"<f4"``) or torch (``"bfloat16"``) names their type."""
    return _NATIVE_NPY.get(dtype) or _NATIVE_RAW.get(dtype)


def split_npy(data: Buffer) -> tuple[bytes, memoryview]:
    """Split a ``.npy`` file into its header and its elements.

    Returns
    -------
    header : bytes
        All bytes before the elements; empty if `data` does not begin as a ``.npy`` file does.
    payload : memoryview
        The rest, where it lies.
    """
    view = memoryview(data).cast("B")
    prefix = bytes(view[:12])
    if prefix[:6] != _MAGIC or len(prefix) < 12:
        return b"", view
    major = prefix[6]
    length, start = (prefix[8:10], 10) if major == 1 else (prefix[8:12], 12)
    end = start + int.from_bytes(length, "little")
    if major not in (1, 2, 3) or end > min(LONGEST_HEADER, len(view)):
        return b"", view
    return bytes(view[:end]), view[end:]


@lru_cache(maxsize=4096)
def parse_header(header: bytes) -> tuple[str, bool, tuple[int, ...]] | None:
    """Read dtype, Fortran order and shape from a header, or ``None`` unless it is written as NumPy writes it."""
    start = 10 if header[6:7] == b"\x01" else 12
    match = _HEADER.fullmatch(header[start:].decode("latin-1"))
    if match is None:
        return None
    try:
        shape = tuple(int(part) for part in match["shape"].replace(" ", "").split(",") if part)
    except ValueError:
        return None
    return match["descr"], match["fortran"] == "True", shape


def native_type(entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Say what safetensors calls the elements of an entry, and their shape.

    What it cannot express (Fortran order, big endian, strings, records, what is no array) is ``U8`` of ``[size]``.
    """
    name, shape = "", entry.shape
    if entry.kind == "raw":
        name = _NATIVE_RAW.get(entry.dtype, "")
    elif entry.header and (parsed := parse_header(entry.header)) is not None:
        descr, fortran, shape = parsed
        name = "" if fortran else _NATIVE_NPY.get(descr, "")
    if name and math.prod(shape) * ITEM_SIZE[name] == entry.size:
        return name, shape
    return "U8", (entry.size,)
