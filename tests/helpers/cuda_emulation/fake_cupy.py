"""A stand-in for CuPy on a machine without a GPU: NumPy behind arrays that are as strict as CuPy's, or stricter.

An array never becomes NumPy's by itself, NumPy's functions refuse it, and it refuses NumPy arrays as operands or
indices: what would fail, or would cost a hidden round trip, on a GPU is an error here. `get`, `item`, `float()` and the
like, which wait for the device, are counted in `round_trips`. Kernels run in the emulator. Fresh memory is NaN.
"""

from __future__ import annotations

import sys
import time
import types
from contextlib import contextmanager

import numpy as np

from helpers.cuda_emulation.emulator import Module

#: (what, bytes) of everything that came from the device since `round_trips.clear()`
round_trips: list[tuple[str, int]] = []
#: how kernels compiled from now on are emulated (emulator.Module)
emulation: dict = {}


class ndarray:
    """A device array."""

    __array_priority__ = 100
    __array_ufunc__ = None  # NumPy's operators give way, its ufuncs refuse

    def __init__(self, array):
        self._array = array

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} was called on a device array")

    @property
    def __cuda_array_interface__(self):
        interface = self._array.__array_interface__
        return {name: interface[name] for name in ("shape", "typestr", "data", "strides")} | {"version": 3}

    shape = property(lambda self: self._array.shape)
    strides = property(lambda self: self._array.strides)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: ndarray(self._array.T))
    data = property(lambda self: types.SimpleNamespace(ptr=self._array.ctypes.data))

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (ndarray(row) for row in self._array)

    def __getitem__(self, key):
        return _wrapped(self._array[_index(key)])

    def __setitem__(self, key, value):
        self._array[_index(key)] = _operand(value)

    def get(self, stream=None, order="C", out=None, blocking=True):
        _note("get", self.nbytes)
        if out is None:
            return self._array.copy()
        if not (out.flags.c_contiguous and out.shape == self.shape and out.dtype == self.dtype):
            raise ValueError("out does not fit")
        out[...] = self._array
        return out

    def set(self, array, stream=None):
        if not isinstance(array, np.ndarray) or array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError("the host array does not fit")
        self._array[...] = array

    def item(self):
        _note("item", self.itemsize)
        return self._array.item()

    def __bool__(self):
        return bool(self.item())

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    __index__ = __int__

    def reshape(self, *shape):
        return ndarray(self._array.reshape(*shape))

    def transpose(self, *axes):
        return ndarray(self._array.transpose(*axes))

    def view(self, dtype):
        return ndarray(self._array.view(dtype))

    def astype(self, dtype, copy=True):
        with np.errstate(over="ignore"):
            converted = self._array.astype(dtype, copy=copy)
        return self if converted is self._array else ndarray(converted)

    def copy(self):
        return ndarray(self._array.copy())

    def repeat(self, repeats, axis=None):
        return ndarray(self._array.repeat(repeats, axis))

    def fill(self, value):
        self._array.fill(value)


def _note(what, n_bytes):
    round_trips.append((what, n_bytes))


def _index(key):
    if isinstance(key, tuple):
        return tuple(_index(part) for part in key)
    if isinstance(key, np.ndarray | list):
        raise TypeError("a device array is indexed by host indices: a hidden copy to the device")
    if isinstance(key, ndarray):
        if key.dtype == bool:
            raise TypeError("a device array is indexed by a mask: how many it selects would be waited for")
        return key._array
    return key


def _operand(value):
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value._array if isinstance(value, ndarray) else value


def _wrapped(result):
    if isinstance(result, np.ndarray):
        return ndarray(result)
    if isinstance(result, np.generic):
        return ndarray(np.asarray(result))  # 0-d, as CuPy's
    return [_wrapped(part) for part in result] if isinstance(result, list | tuple) else result


def _operator(name):
    def apply(self, *others):
        with np.errstate(all="ignore"):
            return _wrapped(getattr(self._array, name)(*(_operand(other) for other in others)))

    return apply


def _in_place(name):
    def apply(self, other):
        getattr(self._array, name)(_operand(other))
        return self

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "lshift", "rshift"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("matmul", "neg", "invert", "abs", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _method(name):
    def apply(self, *args, out=None, **kwargs):
        result = getattr(self._array, name)(*args, **kwargs)
        if out is None:
            return _wrapped(result)
        out._array[...] = result
        return out

    return apply


for _name in ("sum", "max", "min", "mean", "any", "all", "argmax", "argmin", "ravel"):
    setattr(ndarray, _name, _method(_name))


def _function(of, name):
    """NumPy's function of device arrays and scalars."""
    function = getattr(of, name)

    def apply(*args, **kwargs):
        def inside(value):
            if isinstance(value, list | tuple):
                return type(value)(inside(part) for part in value)
            return _operand(value)

        out = kwargs.pop("out", None)
        with np.errstate(all="ignore"):
            result = function(*inside(args), **{key: inside(value) for key, value in kwargs.items()})
        if out is None:
            return _wrapped(result)
        if not out.flags.c_contiguous or out.dtype != result.dtype:
            raise ValueError("out does not fit")
        out._array[...] = result
        return out

    return apply


NAMES = [
    "abs",
    "arange",
    "argmin",
    "ascontiguousarray",
    "concatenate",
    "einsum",
    "exp",
    "isinf",
    "log",
    "matmul",
    "maximum",
    "minimum",
    "pad",
    "rint",
    "split",
    "sqrt",
    "stack",
    "tanh",
    "where",
    "zeros_like",
]
for _name in NAMES:
    globals()[_name] = _function(np, _name)


def empty(shape, dtype=np.float32):
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8).fill(255)
    return ndarray(array)


def empty_like(array):
    return empty(array.shape, array.dtype)


def zeros(shape, dtype=np.float32):
    return ndarray(np.zeros(shape, dtype))


def full(shape, value, dtype=None):
    return ndarray(np.full(shape, value, dtype))


def asarray(array, dtype=None):
    if isinstance(array, ndarray):
        return array if dtype is None else array.astype(dtype, copy=False)
    return ndarray(np.array(array, dtype))  # the upload


def array(array, dtype=None, order="K"):
    return ndarray(np.array(array._array if isinstance(array, ndarray) else array, dtype, order=order))


class RawModule:
    def __init__(self, *, code, options):
        self._module = Module(code, options, **emulation)

    def get_function(self, name):
        return RawKernel(self._module.get_function(name))


class RawKernel:
    def __init__(self, kernel):
        self._kernel = kernel

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self._kernel.max_dynamic_shared_size_bytes = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        if any(isinstance(arg, np.ndarray) for arg in args):
            raise TypeError("a kernel is given a host array")
        self._kernel(grid, block, [arg._array if isinstance(arg, ndarray) else arg for arg in args], shared_mem)


class Stream:
    """Everything is done when it is queued; waiting is noted where it would stop the host."""

    def __init__(self, non_blocking=False):
        pass

    def wait_event(self, event):
        if not event.recorded:
            raise RuntimeError("a stream waits for an event that was never recorded")

    def synchronize(self):
        _note("synchronize", 0)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        pass


class Event:
    def __init__(self, disable_timing=False):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True
        self.time_s = time.perf_counter()

    def synchronize(self):
        _note("wait", 0)


_stream = Stream()


class _Device:
    def __init__(self, number):
        self.number = number

    def use(self):
        if not 0 <= self.number < n_devices[0]:
            raise RuntimeError("cudaErrorInvalidDevice")


#: how many GPUs this machine seems to have
n_devices = [1]


def _count():
    if n_devices[0] == 0:
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return n_devices[0]


def _properties(number):
    return {"name": b"a stand-in", "uuid": bytes([number + 1] * 16)}


cuda = types.SimpleNamespace(
    Stream=Stream,
    Event=Event,
    Device=_Device,
    get_current_stream=lambda: _stream,
    get_elapsed_time=lambda start, end: 1e3 * (end.time_s - start.time_s),
    alloc_pinned_memory=lambda n: bytearray(n),
    runtime=types.SimpleNamespace(getDeviceCount=_count, getDeviceProperties=_properties),
)
linalg = types.SimpleNamespace(norm=_function(np.linalg, "norm"))
#: what `set_compute_type` was told
compute_types: dict = {}
_core = types.SimpleNamespace(
    set_compute_type=compute_types.__setitem__,
    _routines_linalg=types.SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7),
)


@contextmanager
def installed(**how):
    """Let `import cupy`, and the kernels that do so, find this module meanwhile. how: see `emulation`."""
    from astra_mpi import kernels

    hidden = {name: sys.modules.pop(name) for name in _affected()}
    sys.modules["cupy"] = module = sys.modules[__name__]
    emulation.clear()
    emulation.update(how)
    kept = vars(kernels).pop("cuda", None)
    try:
        yield module
    finally:
        for name in _affected():
            del sys.modules[name]
        sys.modules.update(hidden)
        vars(kernels).pop("cuda", None)
        if kept is not None:
            kernels.cuda = kept


def _affected():
    return [
        name
        for name in sys.modules
        if name.split(".")[0] in ("cupy", "cupyx") or name.startswith("astra_mpi.kernels.cuda")
    ]
