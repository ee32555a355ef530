"""Arrays as the memory they are: address, dtype, shape and strides in elements.

numpy arrays and CPU torch tensors are read and written; those of other libraries are read, through DLPack or the buffer
protocol.
"""

import ctypes
import functools
import sys

import numpy as np

from .header import BROADCAST

FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64", "uint16": "bf16"}
INTEGERS = {"int32": "i32", "int64": "i64"}
BYTES = ("bool", "uint8")

_SOMEWHERE = np.zeros(1)  # an address for arrays without elements


def is_torch(x):
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def known(x):
    """`x` as numpy's or torch's, without a copy."""
    if isinstance(x, np.ndarray) or is_torch(x):
        return x
    if hasattr(x, "__dlpack__") and x.__dlpack_device__()[0] == 1:
        return np.asarray(_DLPack(x))
    try:
        x = np.asarray(memoryview(x))
    except (TypeError, ValueError):
        raise ValueError(f"an array in the CPU's memory is needed, and this is a {type(x).__name__}") from None
    x.flags.writeable = False
    return x


class _DLPack:
    """What numpy needs to look at the memory of another library's array, bfloat16 as uint16. It stays read-only: such
    arrays are values to their libraries."""

    class Tensor(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p),
            ("device", ctypes.c_int32 * 2),
            ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8),
            ("bits", ctypes.c_uint8),
            ("lanes", ctypes.c_uint16),
            ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.POINTER(ctypes.c_int64)),
            ("byte_offset", ctypes.c_uint64),
        ]

    KINDS = {0: "i", 1: "u", 2: "f", 4: "u", 6: "b"}  # 4: bfloat16

    def __init__(self, x):
        self.capsule = x.__dlpack__()  # frees the tensor when nobody holds it any more
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = self.Tensor.from_address(pointer(self.capsule, b"dltensor"))
        if tensor.code not in self.KINDS or tensor.lanes != 1:
            raise ValueError(f"its elements have DLPack's code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes")
        item = tensor.bits // 8
        self.__array_interface__ = {
            "version": 3,
            "data": ((tensor.data or _SOMEWHERE.ctypes.data) + tensor.byte_offset, True),
            "shape": tuple(tensor.shape[: tensor.ndim]),
            "strides": tuple(item * n for n in tensor.strides[: tensor.ndim]) if tensor.strides else None,
            "typestr": f"{'<' if sys.byteorder == 'little' else '>'}{self.KINDS[tensor.code]}{item}",
        }


def new(x, shape, dtype):
    """An array of zeros of x's kind; of numpy's where `x` is another library's. `dtype` by its name."""
    if is_torch(x):
        return sys.modules["torch"].zeros(shape, dtype=getattr(sys.modules["torch"], dtype))
    if isinstance(x, np.ndarray) and dtype == dtype_name(x):
        return np.zeros(shape, x.dtype.newbyteorder("="))
    return np.zeros(shape, "uint16" if dtype == "bfloat16" else dtype)


def filled(to, x):
    """`to` with the values of `x`, converted; uint16 stands for bfloat16."""
    if is_torch(to):
        to.copy_(x if is_torch(x) else sys.modules["torch"].from_numpy(_floats(x)))
    elif to.dtype == np.uint16 and dtype_name(x) != "uint16":  # to nearest even; a NaN stays one
        bits = np.asarray(x, np.float32).view(np.uint32)
        to[...] = np.where(np.isnan(x), bits >> 16 | 0x40, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    elif to.dtype == np.uint16:
        to[...] = x
    else:
        to[...] = _floats(x)
    return to


def repeated(x, size, axis):
    """`x` with each of its elements along `axis` several times, side by side, to `size` in all."""
    times = size // x.shape[axis]
    return x.repeat_interleave(times, axis) if is_torch(x) else np.repeat(x, times, axis)


def wide(x):
    """`x` in float32; float64 stays."""
    if is_torch(x):
        return x if dtype_name(x) == "float64" else x.float()
    x = _floats(x)
    return x if x.dtype == np.float64 else x.astype(np.float32)


def _floats(x):
    x = np.asarray(x)
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def contiguous(x):
    return x.contiguous() if is_torch(x) else np.array(x, x.dtype.newbyteorder("="), order="C")


def dtype_name(x):
    """ "float32", "bfloat16", ... of either kind of array."""
    return _name(x.dtype)


@functools.cache
def _name(dtype):
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


def dtype_named(dtype):
    """The name of a dtype of numpy's or torch's, or of its name."""
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name if isinstance(dtype, type) else _name(dtype)


class View:
    """`x` where it lies. Strides of axes of one element are 0, as any number would do."""

    def __init__(self, x):
        if is_torch(x):
            if x.device.type != "cpu" or x.layout != sys.modules["torch"].strided:
                raise ValueError(f"a dense CPU tensor is needed, and this one is {x.layout} on {x.device}")
            if x.requires_grad and sys.modules["torch"].is_grad_enabled():
                raise ValueError("it requires gradients, and none are computed: detach it, or use torch.no_grad()")
            self.address, strides, self.writable, self.aligned = x.data_ptr(), x.stride(), True, True
            self.contiguous = x.is_contiguous()
        else:
            item, flags = x.itemsize, x.flags
            self.address, self.writable, self.contiguous = x.ctypes.data, flags.writeable, flags.c_contiguous
            self.aligned = flags.aligned and x.dtype.isnative and not any(stride % item for stride in x.strides)
            strides = [stride // item for stride in x.strides]
        self.shape = tuple(x.shape)
        self.strides = [stride if size > 1 else 0 for size, stride in zip(self.shape, strides)]
        self.dtype = dtype_name(x)
        self.owner = x
        if 0 in self.shape:
            self.address = _SOMEWHERE.ctypes.data

    def plain(self, inner, least=1):
        """Whether the library can address it: the last `inner` axes contiguous, every stride at least `least`."""
        if self.contiguous:
            return self.aligned
        expected = 1
        for size, stride in list(zip(self.shape, self.strides))[: -inner - 1 : -1]:
            if size > 1 and stride != expected:
                return False
            expected *= size
        return self.aligned and all(stride >= least for size, stride in zip(self.shape, self.strides) if size > 1)


def readable(x, inner=1, least=1):
    """A view of an input; of a copy where its strides are beyond the library, as the Triton wrapper does it."""
    view = View(x)
    return view if view.plain(inner, least) else View(contiguous(x))


def broadcastable(x, inner=1):
    """The same, where a stride of 0, an element that stands for a whole axis, is within the library."""
    view = readable(x, inner, least=0)
    view.strides = [BROADCAST if size > 1 and stride == 0 else stride for size, stride in zip(view.shape, view.strides)]
    return view


def writable(x, inner):
    """A view of what is written in place: never of a copy, whose update would be lost."""
    view = View(x)
    if not view.plain(inner):
        raise ValueError(f"its last {inner} axes must be contiguous and its strides positive: a copy would be written")
    if not view.writable:
        raise ValueError("it is written, and read-only")
    return view


def integers(x):
    """An index array: int32 and int64 where they lie, anything else that holds integers converted."""
    x = np.asarray(x) if isinstance(x, (list, tuple, range)) else known(x)
    if dtype_name(x) not in INTEGERS:
        values = np.asarray(x)
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"integers are needed, and this is {dtype_name(x)}")
        x = values.astype(np.int64)
    return x
