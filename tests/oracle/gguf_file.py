"""Writes and reads GGUF version 3 files, little endian: just what the oracles need.

Written from the format's description (magic, version, counts, key-value pairs, tensor infos, padding to
`general.alignment` = 32, data). It shares no code with the engine, so that a mistake in one is seen by the other.

Tensor shapes are given and returned the torch way, `[rows, cols]`; the file stores them fastest first.
"""

import struct
from math import prod

import numpy as np

ALIGNMENT_BYTES = 32
F32, F16, I2_S = 0, 1, 36

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


class F32List(list):
    """A list to be written as an f32 array (floats in a plain list would do, but an empty one has no type)."""


class I32List(list):
    """A list to be written as an i32 array, as token types are."""


def write(path, values, tensors):
    """Writes `values` ({key: value}) and `tensors` ([(name, type, array)]).

    ints become u32, floats f32, lists of str string arrays. F32 and F16 arrays are [rows, cols] or [n]; an I2_S entry
    is a pair (codes, scale): codes int8 [rows, cols] of -1, 0, +1, whose product is a multiple of 128.
    """
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
    for key, value in values.items():
        out += _string(key) + _value(value)
    data = bytearray()
    for name, ty, array in tensors:
        shape = (array[0] if ty == I2_S else array).shape
        out += _string(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<q", n) for n in reversed(shape))
        out += struct.pack("<IQ", ty, len(data))
        data += _pad(_tensor_bytes(ty, array))
    with open(path, "wb") as file:
        file.write(_pad(bytes(out)) + bytes(data))


def read(path):
    """Returns (values, tensors): {key: value} and {name: float32 array, or (codes int8, scale float32) for I2_S}."""
    with open(path, "rb") as file:
        cursor = _Cursor(file.read())
    assert cursor.take(4) == b"GGUF" and cursor.scalar("<I") == 3
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    values = {}
    for _ in range(n_values):
        key = cursor.string()
        values[key] = cursor.value(cursor.scalar("<I"))
    infos = []
    for _ in range(n_tensors):
        name = cursor.string()
        shape = tuple(reversed([cursor.scalar("<q") for _ in range(cursor.scalar("<I"))]))
        infos.append((name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
    start = -(-cursor.at // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return values, {name: _tensor(cursor.bytes[start + offset :], ty, shape) for name, shape, ty, offset in infos}


def pack_i2_s(codes, scale):
    """codes: int8 [rows, cols] of -1, 0, +1 -> n/4 code bytes, the f32 scale and 28 zero bytes.

    Blocks of 128 weights take 32 bytes: weight j of a block is in byte j % 32, bits 7:6 for j < 32, then 5:4, 3:2, 1:0.
    """
    blocks = (codes.reshape(-1, 4, 32) + 1).astype(np.uint8)
    packed = blocks[:, 0] << 6 | blocks[:, 1] << 4 | blocks[:, 2] << 2 | blocks[:, 3]
    return packed.tobytes() + struct.pack("<f", scale) + bytes(28)


def _string(text):
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value):
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, F32List):
        return struct.pack("<IIQ", _ARRAY, _F32, len(value)) + struct.pack(f"<{len(value)}f", *value)
    if isinstance(value, I32List):
        return struct.pack("<IIQ", _ARRAY, _I32, len(value)) + struct.pack(f"<{len(value)}i", *value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_string(text) for text in value)


def _tensor_bytes(ty, array):
    if ty == I2_S:
        return pack_i2_s(*array)
    return np.ascontiguousarray(array, dtype={F32: "<f4", F16: "<f2"}[ty]).tobytes()


def _pad(raw):
    return raw + bytes(-len(raw) % ALIGNMENT_BYTES)


def _tensor(raw, ty, shape):
    n = prod(shape)
    if ty != I2_S:
        return np.frombuffer(raw, {F32: "<f4", F16: "<f2"}[ty], n).astype(np.float32).reshape(shape)
    blocks = np.frombuffer(raw, np.uint8, n // 4).reshape(-1, 1, 32)
    codes = (blocks >> np.array([6, 4, 2, 0], np.uint8).reshape(1, 4, 1)) & 3
    return codes.astype(np.int8).reshape(shape) - 1, np.frombuffer(raw, "<f4", 1, offset=n // 4)[0]


class _Cursor:
    def __init__(self, raw):
        self.bytes, self.at = raw, 0

    def take(self, n):
        self.at += n
        assert self.at <= len(self.bytes), "the file ends early"
        return self.bytes[self.at - n : self.at]

    def scalar(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return self.take(self.scalar("<Q")).decode("utf-8")

    def value(self, ty):
        if ty == _STRING:
            return self.string()
        if ty == _ARRAY:
            of, n = self.scalar("<I"), self.scalar("<Q")
            return [self.value(of) for _ in range(n)]
        return self.scalar(_SCALARS[ty])
