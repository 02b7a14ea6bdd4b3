"""kv.py: uses the store from Python, with ctypes only.

python3 kv.py localhost:PORT          (to load another file than libkvclient.so.1, set KVCLIENT)
"""
import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p


class Slice(ctypes.Structure):
    _fields_ = [("data", c_char_p), ("len", c_size_t)]


class Buf(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("len", c_size_t), ("version", c_uint64)]


class Result(ctypes.Structure):
    _fields_ = [("version", c_uint64), ("copies", c_uint32), ("reserved", c_uint32), ("doubt", c_uint64 * 2)]


lib = ctypes.CDLL(os.environ.get("KVCLIENT", "libkvclient.so.1"))
lib.kvc_status_name.restype = lib.kvc_last_error.restype = c_char_p
lib.kvc_open.argtypes = [c_char_p, c_void_p, POINTER(c_void_p)]
lib.kvc_close.argtypes = [c_void_p]
lib.kvc_put.argtypes = [c_void_p, Slice, Slice, c_void_p, POINTER(Result)]
lib.kvc_get.argtypes = [c_void_p, Slice, c_void_p, POINTER(Buf)]
lib.kvc_delete.argtypes = [c_void_p, Slice, c_void_p, c_void_p]
lib.kvc_buf_free.argtypes, lib.kvc_buf_free.restype = [POINTER(Buf)], None


def check(status):
    if status != 0:
        raise OSError(f"{lib.kvc_status_name(status).decode()}: {lib.kvc_last_error().decode()}")


def get(client, key):
    buf = Buf()
    status = lib.kvc_get(client, Slice(key, len(key)), None, byref(buf))
    if status == -1:  # KVC_NOT_FOUND
        return None
    check(status)
    try:
        return ctypes.string_at(buf.data, buf.len)
    finally:
        lib.kvc_buf_free(byref(buf))


if len(sys.argv) != 2:
    sys.exit(__doc__)
client, written, key = c_void_p(), Result(), Slice(b"from python", 11)
check(lib.kvc_open(sys.argv[1].encode(), None, byref(client)))
check(lib.kvc_put(client, key, Slice(b"any\0bytes", 9), None, byref(written)))
print(f"stored on {written.copies} servers")
print(f"read: {get(client, b'from python')!r}")
check(lib.kvc_delete(client, key, None, None))
print(f"deleted: {get(client, b'from python')!r}")
check(lib.kvc_close(client))
