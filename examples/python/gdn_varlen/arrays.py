"""numpy arrays and CPU torch tensors as the memory they are: address, dtype, shape and strides in elements."""

import functools
import sys

import numpy as np

FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64", "uint16": "bf16"}
INTEGERS = {"int32": "i32", "int64": "i64"}

_SOMEWHERE = np.zeros(1)  # an address for arrays without elements


def is_torch(x):
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def contiguous(x):
    return x.contiguous() if is_torch(x) else np.array(x, x.dtype.newbyteorder("="), order="C")


def dtype_name(x):
    """"float32", "bfloat16", ... of either kind of array."""
    return _name(x.dtype)


@functools.cache
def _name(dtype):
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


class View:
    """`x` where it lies. Strides of axes of one element are 0, as any number would do."""

    def __init__(self, x):
        if is_torch(x):
            if x.device.type != "cpu" or x.layout != sys.modules["torch"].strided:
                raise ValueError(f"a dense CPU tensor is needed, and this one is {x.layout} on {x.device}")
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

    def plain(self, inner):
        """Whether the library can address it: the last `inner` axes contiguous, every stride forwards."""
        if self.contiguous:
            return self.aligned
        expected = 1
        for size, stride in list(zip(self.shape, self.strides))[: -inner - 1 : -1]:
            if size > 1 and stride != expected:
                return False
            expected *= size
        return self.aligned and all(stride > 0 for size, stride in zip(self.shape, self.strides) if size > 1)


def readable(x, inner=1):
    """A view of an input; of a copy where its strides are beyond the library, as the Triton wrapper does it."""
    view = View(x)
    return view if view.plain(inner) else View(contiguous(x))


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
    if not is_torch(x):
        x = np.asarray(x)
    if dtype_name(x) not in INTEGERS:
        values = np.asarray(x)
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"integers are needed, and this is {dtype_name(x)}")
        x = values.astype(np.int64)
    return x
