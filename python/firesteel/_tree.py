"""Params trees to tensors and back, without a copy where none is needed.

`pack` takes what a script hands over apart into tensors and a description of
the tree around them; `unpack` lays arrays over a mapped model file. The layout
is `docs/specs/model.md`. torch is used when it is already imported, never
imported for its own sake.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from firesteel.errors import TreeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from firesteel._native import ModelFile

    # What `_native.write_model` reads: a buffer, or what makes one, or several
    # after another, on demand.
    Source = Any
    Tensor = tuple[str, str, tuple[int, ...], Source]

# In a model's metadata: the names of the tensors that came from torch, or `*`.
TORCH = "firesteel.torch"
# Frameworks whose arrays are sent as NumPy arrays, by their modules' roots.
_FOREIGN = ("keras", "tensorflow", "jax", "jaxlib")

# The same numbers as crates/base/base/src/limits.rs.
DEPTH = 64
LEAVES = 4_000_000
TEXT_BYTES = 16 * 1024 * 1024

_NUMPY_TO_NAME = {
    "b1": "BOOL",
    "u1": "U8",
    "i1": "I8",
    "u2": "U16",
    "i2": "I16",
    "u4": "U32",
    "i4": "I32",
    "u8": "U64",
    "i8": "I64",
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
}
_NAME_TO_NUMPY = {name: np.dtype("<" + code) for code, name in _NUMPY_TO_NAME.items()}
# dtypes that NumPy only knows with the ml_dtypes package.
_NAME_TO_EXTENSION = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_EXTENSION_TO_NAME = {name: key for key, name in _NAME_TO_EXTENSION.items()}
_NAME_TO_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_TORCH_TO_NAME = {name: key for key, name in _NAME_TO_TORCH.items()}
ITEM_BYTES = {
    name: (1 if name[-1] == "8" or name in ("BOOL", "F8_E4M3", "F8_E5M2") else int(name[-2:]) // 8)
    for name in _NAME_TO_TORCH
}


class Packed:
    """A params tree taken apart.

    Attributes:
        tensors: what `_native.write_model` takes.
        tree: the tree's JSON; None for a flat dict that its tensors describe.
        aliases: alias name to tensor name, for arrays that are one object twice.
        values: tensor name to the array or torch tensor it is made from.
        nbytes: bytes of all tensors.
    """

    __slots__ = ("aliases", "nbytes", "tensors", "tree", "values")

    def __init__(
        self,
        tensors: list[Tensor],
        tree: str | None,
        aliases: dict[str, str],
        values: dict[str, Any],
        nbytes: int,
    ) -> None:
        self.tensors = tensors
        self.tree = tree
        self.aliases = aliases
        self.values = values
        self.nbytes = nbytes

    def kinds(self) -> dict[str, str] | None:
        """Metadata that say which tensors came from torch; None when none did."""
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        kind = torch.Tensor
        names = [name for name, value in self.values.items() if isinstance(value, kind)]
        if not names:
            return None
        return {TORCH: json.dumps(names if len(names) < len(self.values) else ["*"])}


class _Packer:
    def __init__(self, root: str, ties: bool) -> None:
        self.root = root
        self.ties = ties
        self.torch = sys.modules.get("torch")
        self.tensors: list[Tensor] = []
        self.aliases: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.owners: dict[Any, str] = {}
        self.taken: set[str] = set()
        self.leaves = 0
        self.text_bytes = 0
        self.nbytes = 0

    # -- places ----------------------------------------------------------

    def refuse(self, steps: tuple[str | int, ...], what: str, hint: str = "") -> TreeError:
        path = self.root + "".join(f"[{step!r}]" for step in steps)
        return TreeError(f"{path}: {what}", hint=hint, path=path)

    def name_for(self, steps: tuple[str | int, ...]) -> str:
        plain = ".".join(map(str, steps)) or "params"
        # `__metadata__` is the file format's own key.
        name, number = plain, 2
        while name in self.taken or name == "__metadata__":
            name = f"{plain}#{number}"
            number += 1
        self.taken.add(name)
        return name

    def count_text(self, steps: tuple[str | int, ...], size: int) -> None:
        self.text_bytes += size
        if self.text_bytes > TEXT_BYTES:
            raise self.refuse(
                steps,
                f"the strings, bytes and keys up to here are more than {TEXT_BYTES >> 20} MiB",
                "send large data as arrays: np.frombuffer(data, np.uint8)",
            )

    # -- nodes -----------------------------------------------------------

    def node(self, value: Any, steps: tuple[str | int, ...]) -> dict[str, Any]:
        if len(steps) > DEPTH:
            raise self.refuse(
                steps[:3],
                f"is nested more than {DEPTH} deep",
                "a dict or list that contains itself cannot be sent",
            )
        if isinstance(value, dict):
            return self.dict_node(value, steps)
        kind = type(value)
        if isinstance(value, list):
            return {"l": [self.node(item, (*steps, at)) for at, item in enumerate(value)]}
        if kind is tuple:
            return {"u": [self.node(item, (*steps, at)) for at, item in enumerate(value)]}
        self.leaves += 1
        if self.leaves > LEAVES:
            raise self.refuse(
                steps,
                f"is past the limit of {LEAVES:,} values",
                "gather small values into arrays",
            )
        if isinstance(value, np.ndarray):
            return {"t": self.array(value, steps)}
        if self.torch is not None and isinstance(value, self.torch.Tensor):
            return {"t": self.torch_tensor(value, steps)}
        if _is_foreign(value):
            return {"t": self.foreign(value, steps)}
        return self.scalar(value, steps)

    def dict_node(self, value: dict[Any, Any], steps: tuple[str | int, ...]) -> dict[str, Any]:
        pairs = []
        for key, item in value.items():
            if not isinstance(key, str):
                raise self.refuse(
                    steps,
                    f"has the key {key!r}, a {_kind(key)}; keys must be strings",
                    f"use {str(key)!r}",
                )
            try:
                self.count_text(steps, len(key.encode()))
            except UnicodeEncodeError:
                raise self.refuse(steps, f"has the key {key!r}, which is not valid text") from None
            pairs.append([str(key), self.node(item, (*steps, key))])
        return {"d": pairs}

    def scalar(self, value: Any, steps: tuple[str | int, ...]) -> dict[str, Any]:
        if value is None:
            return {"n": 0}
        if isinstance(value, str):
            try:
                self.count_text(steps, len(value.encode()))
            except UnicodeEncodeError:
                raise self.refuse(steps, "a string that is not valid text") from None
            return {"s": str(value)}
        if isinstance(value, (bytes, bytearray)):
            self.count_text(steps, len(value))
            return {"x": base64.b64encode(value).decode("ascii")}
        if isinstance(value, np.generic):
            # The scalar's array is a temporary: its address may come again.
            return {"t": self.array(np.asarray(value), steps, may_tie=False)}
        if isinstance(value, bool):
            return {"b": value}
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise self.refuse(
                    steps, f"the integer {value} does not fit 64 bits", "send it as a string"
                )
            return {"i": str(int(value))}
        if isinstance(value, float):
            return {"f": _float_json(value)}
        raise self.refuse(steps, f"a {_kind(value)} cannot be sent", _cure(value))

    # -- tensors ---------------------------------------------------------

    def array(
        self, array: np.ndarray[Any, Any], steps: tuple[str | int, ...], *, may_tie: bool = True
    ) -> str:
        # Looked up, not imported: who made a masked array has loaded the module,
        # and loading it costs a fresh trainer more than all the rest.
        masked = sys.modules.get("numpy.ma")
        if masked is not None and isinstance(array, masked.MaskedArray):
            raise self.refuse(
                steps, "a masked array cannot be sent", "fill it first: `array.filled(0)`"
            )
        dtype = self.numpy_dtype(array.dtype, steps)
        if array.ndim > 64:
            raise self.refuse(steps, f"has {array.ndim} dimensions, the limit is 64")
        key: Any = None
        if may_tie and self.ties and array.size:
            at = array.__array_interface__["data"][0]
            key = (at, array.shape, array.strides, dtype)
        tied = self.tie(key, steps)
        if tied is not None:
            return tied
        name = self.own(key, steps, array)
        self.add(name, dtype, array.shape, array.size, numpy_source(array))
        return name

    def numpy_dtype(self, dtype: np.dtype[Any], steps: tuple[str | int, ...]) -> str:
        name = _NUMPY_TO_NAME.get(f"{dtype.kind}{dtype.itemsize}")
        if name is None or dtype.names is not None:
            name = _EXTENSION_TO_NAME.get(dtype.name)
        if name is not None:
            return name
        hints = {
            "O": "an array of objects holds Python objects; "
            "send a list, or an array of one numeric dtype",
            "U": "send strings as a list: `array.tolist()`",
            "S": "send strings as a list: `array.tolist()`",
            "M": 'send dates as numbers: `array.astype("int64")`',
            "m": 'send spans as numbers: `array.astype("int64")`',
            "c": "send real and imaginary part as two arrays: `array.real`, `array.imag`",
            "f": "narrow it first: `array.astype(np.float64)`",
        }
        raise self.refuse(
            steps,
            f"an array of dtype {dtype} cannot be sent",
            hints.get(
                dtype.kind, "supported: bool, int8..int64, uint8..uint64, float16/32/64, bf16, fp8"
            ),
        )

    def torch_tensor(self, tensor: Any, steps: tuple[str | int, ...]) -> str:
        torch: Any = self.torch
        dtype = _TORCH_TO_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise self.refuse(
                steps,
                f"a tensor of dtype {tensor.dtype} cannot be sent",
                "send real and imaginary part apart: `torch.view_as_real(tensor)`"
                if tensor.is_complex()
                else "dequantize or convert it first: `tensor.to(torch.float32)`",
            )
        if tensor.layout is not torch.strided:
            raise self.refuse(
                steps, f"a tensor of layout {tensor.layout} cannot be sent", "use `.to_dense()`"
            )
        if tensor.device.type == "meta":
            raise self.refuse(
                steps, "a tensor on the `meta` device has no data", "materialize the model first"
            )
        shape = tuple(tensor.shape)
        size = tensor.numel()
        key: Any = None
        if self.ties and size:
            key = (str(tensor.device), tensor.data_ptr(), shape, tensor.stride(), dtype)
        tied = self.tie(key, steps)
        if tied is not None:
            return tied
        name = self.own(key, steps, tensor)
        self.add(name, dtype, shape, size, torch_source(tensor))
        return name

    def foreign(self, value: Any, steps: tuple[str | int, ...]) -> str:
        """A variable or array of Keras, TensorFlow or JAX."""
        inner = getattr(value, "value", None)
        if self.torch is not None and isinstance(inner, self.torch.Tensor):
            # A Keras variable whose backend is torch.
            return self.torch_tensor(inner, steps)
        try:
            # TensorFlow's dtypes have a name, Keras' are one.
            named = np.dtype(str(getattr(value.dtype, "name", value.dtype)))
        except TypeError:
            named = None
        if named is None:
            # NumPy knows bfloat16 and the like once `ml_dtypes` is imported, which
            # these frameworks do: what it does not know now is nothing to send.
            raise self.refuse(
                steps,
                f"a {_kind(value)} of dtype {value.dtype} cannot be sent",
                "convert it first: `numpy.asarray(value)`",
            )
        dtype = self.numpy_dtype(named, steps)
        shape = tuple(map(int, value.shape))
        key = (id(value),) if self.ties else None
        tied = self.tie(key, steps)
        if tied is not None:
            return tied
        name = self.own(key, steps, value)
        size = math.prod(shape)

        def brought() -> Iterator[Any]:
            return buffers(numpy_source(np.asarray(value)))

        self.add(name, dtype, shape, size, brought)
        return name

    def tie(self, key: Any, steps: tuple[str | int, ...]) -> str | None:
        owner = self.owners.get(key) if key is not None else None
        if owner is None:
            return None
        alias = self.name_for(steps)
        self.aliases[alias] = owner
        return alias

    def own(self, key: Any, steps: tuple[str | int, ...], value: Any) -> str:
        name = self.name_for(steps)
        if key is not None:
            self.owners[key] = name
        self.values[name] = value
        return name

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], size: int, source: Source
    ) -> None:
        self.count_text((), len(name))
        self.nbytes += size * ITEM_BYTES[dtype]
        self.tensors.append((name, dtype, tuple(map(int, shape)), source))


def _is_foreign(value: Any) -> bool:
    """Whether it is an array of another framework that NumPy can read."""
    root = type(value).__module__.partition(".")[0]
    return root in _FOREIGN and hasattr(value, "__array__") and hasattr(value, "dtype")


def is_leaf_array(value: Any) -> bool:
    """Whether it is one array, of whatever framework."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return True
    return isinstance(value, np.ndarray) or _is_foreign(value)


def plain(params: Any) -> Any:
    """The params themselves; of a Keras model its weights, layer by layer."""
    if isinstance(params, (dict, list, tuple)):
        return params
    if callable(getattr(params, "get_weights", None)) and hasattr(params, "layers"):
        return layer_weights(params)
    return params


def layer_weights(model: Any) -> dict[str, list[Any]]:
    """A Keras model's weights as FLARE's scripts exchange them: layer to arrays."""
    return {layer.name: list(layer.get_weights()) for layer in model.layers}


def torch_names(file: ModelFile) -> list[str]:
    """The tensors of a file that came from torch, where its writer noted them."""
    names = json.loads(file.metadata().get(TORCH, "[]"))
    if names == ["*"]:
        return [entry[0] for entry in file.tensors()]
    return [name for name in names if isinstance(name, str)]


def pack(params: Any, *, root: str = "params", ties: bool = True) -> Packed:
    """Takes a params tree apart.

    Arrays that share storage, shape, strides and dtype become one tensor and
    aliases of it, unless `ties` is off. `root` is the name used in errors.

    Raises:
        TreeError: for anything but dict, list, tuple, str, int, float, bool,
            bytes, None, NumPy arrays and torch tensors; it names path and type.
    """
    packer = _Packer(root, ties)
    try:
        node = packer.node(params, ())
    except RecursionError:
        raise packer.refuse((), "is nested too deep") from None
    flat = _is_flat(packer, node)
    tree = None
    if not flat:
        tree = json.dumps(node, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Packed(packer.tensors, tree, packer.aliases, packer.values, packer.nbytes)


def _is_flat(packer: _Packer, node: dict[str, Any]) -> bool:
    """Whether the file's own list of tensors says it all.

    It does for a dict of arrays whose keys are their names, in an order that
    the file keeps: larger elements first, so that each lies aligned.
    """
    if packer.aliases or "d" not in node or not node["d"]:
        return False
    last = 8
    for (key, child), tensor in zip(node["d"], packer.tensors, strict=False):
        if child.get("t") != key or tensor[0] != key or ITEM_BYTES[tensor[1]] > last:
            return False
        last = ITEM_BYTES[tensor[1]]
    return len(node["d"]) == len(packer.tensors)


# Bytes of a tensor that are copied at a time, when it cannot be written as it lies.
WINDOW = 4 << 20


def numpy_source(array: np.ndarray[Any, Any]) -> Source:
    """The array's bytes, little-endian and C-contiguous: itself, or made on demand.

    What is made on demand comes in windows, each valid until the next is asked for.
    """
    native = array.dtype.byteorder in "=|<" if sys.byteorder == "little" else False
    if array.flags.c_contiguous and native:
        return _bytes_of(array)
    # A copy of one window at a time: `write_model` calls this when it is its turn.
    order = array.dtype if native else array.dtype.newbyteorder("<")

    def windows() -> Iterator[Any]:
        limit = max(1, WINDOW // array.itemsize)
        stage = np.empty(min(limit, array.size), order)
        for part in parts(array, limit):
            copied = stage[: part.size]
            np.copyto(copied.reshape(part.shape), part)
            yield _bytes_of(copied)

    return windows


def _bytes_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(array).reshape(-1).view(np.uint8)


def torch_source(tensor: Any) -> Source:
    """The same for a torch tensor; one on a GPU comes over when it is its turn."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu" and tensor.is_contiguous() and not _is_lazy(tensor):
        return torch_bytes(tensor)

    def windows() -> Iterator[Any]:
        torch: Any = sys.modules["torch"]
        limit = max(1, WINDOW // tensor.element_size())
        stage = torch.empty(min(limit, tensor.numel()), dtype=tensor.dtype)
        for part in parts(tensor, limit):
            copied = stage[: part.numel()]
            copied.view(part.shape).copy_(part)
            yield torch_bytes(copied)

    return windows


def parts(array: Any, limit: int) -> Iterator[Any]:
    """An array's elements in row-major order, cut along its first dimensions into
    slices of at most `limit` elements; NumPy's or torch's."""
    size = math.prod(array.shape)
    if size <= limit:
        if size:
            yield array
        return
    row = size // array.shape[0]
    if row <= limit:
        step = limit // row
        for at in range(0, array.shape[0], step):
            yield array[at : at + step]
    else:
        for at in range(array.shape[0]):
            yield from parts(array[at], limit)


def buffers(source: Source) -> Iterator[Any]:
    """The bytes of a source, from first to last, in as many buffers as it has."""
    made = source() if callable(source) else source
    if hasattr(made, "__next__"):
        yield from made
    else:
        yield made


def _is_lazy(tensor: Any) -> bool:
    return bool(tensor.is_conj() or tensor.is_neg())


def torch_bytes(tensor: Any) -> np.ndarray[Any, Any]:
    """The bytes of a contiguous tensor in main memory."""
    torch: Any = sys.modules["torch"]
    array: np.ndarray[Any, Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


def _float_json(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _kind(value: Any) -> str:
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _cure(value: Any) -> str:
    if isinstance(value, tuple):
        return "a named tuple would arrive as a plain one; send `value._asdict()`"
    if isinstance(value, (set, frozenset)):
        return "send a sorted list"
    if callable(getattr(value, "state_dict", None)):
        return "send its `state_dict()`"
    if hasattr(value, "to_numpy"):
        return "send its numbers: `value.to_numpy()`"
    if hasattr(value, "__array__"):
        return "send it as an array: `numpy.asarray(value)`"
    if isinstance(value, complex):
        return "send real and imaginary part as two floats"
    if hasattr(value, "get_params"):
        return "send the arrays it has learned: {'coef': model.coef_, …}"
    return "params may hold dict, list, tuple, str, int, float, bool, bytes, None and arrays"


# -- the way back -------------------------------------------------------------


class Arrays:
    """The tensors of a model file as arrays that lie in its mapping.

    `kind` is what to make: `numpy` or `torch`; `torch_names`, where given, says
    which tensors are torch's and leaves the rest to NumPy.
    """

    def __init__(
        self, file: ModelFile, kind: str, torch_names: Iterable[str] | None = None
    ) -> None:
        self.file = file
        self.entries = {entry[0]: entry for entry in file.tensors()}
        self.aliases = file.aliases()
        self.made: dict[str, Any] = {}
        self.kind = kind
        self.torch_names = None if torch_names is None else frozenset(torch_names)
        self._base: np.ndarray[Any, Any] | None = None

    def owner(self, name: str) -> str:
        """The tensor behind a name."""
        return self.aliases.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.owner(name) in self.entries

    def get(self, name: str, kind: str | None = None) -> Any:
        """The array of a name; tied names give the same object."""
        name = self.owner(name)
        if kind is None:
            kind = self.kind
            if self.torch_names is not None:
                kind = "torch" if name in self.torch_names else "numpy"
            if name in self.made:
                return self.made[name]
            made = self.made[name] = self.make(name, kind)
            return made
        return self.make(name, kind)

    def make(self, name: str, kind: str) -> Any:
        _, dtype, shape, offset, nbytes = self.entries[name]
        if kind == "torch":
            return _torch_view(self.file, dtype, shape, offset, nbytes)
        if self._base is None:
            self._base = np.frombuffer(cast(Any, self.file), dtype=np.uint8)
        return _numpy_view(self._base, name, dtype, shape, offset, nbytes)


def unpack(file: ModelFile, kind: str = "numpy", torch_names: Iterable[str] | None = None) -> Any:
    """The params tree of a model file; its arrays are views of the file's mapping.

    They may be written to: the mapping is private to this process, and stays
    alive as long as any of them.
    """
    return rebuild(Arrays(file, kind, torch_names))


def rebuild(arrays: Arrays) -> Any:
    """The tree around arrays that may have been made already."""
    text = arrays.file.tree()
    if text is None:
        flat: dict[str, Any] = {name: arrays.get(name) for name in arrays.entries}
        for alias in arrays.aliases:
            flat[alias] = arrays.get(alias)
        return flat
    return _value(json.loads(text), arrays)


def _value(node: dict[str, Any], arrays: Arrays) -> Any:
    ((tag, content),) = node.items()
    make: Callable[[Any, Arrays], Any] = _MAKERS[tag]
    return make(content, arrays)


_MAKERS: dict[str, Callable[[Any, Arrays], Any]] = {
    "d": lambda pairs, arrays: {key: _value(node, arrays) for key, node in pairs},
    "l": lambda items, arrays: [_value(node, arrays) for node in items],
    "u": lambda items, arrays: tuple(_value(node, arrays) for node in items),
    "s": lambda text, arrays: text,
    "i": lambda text, arrays: int(text),
    "f": lambda number, arrays: float(number),
    "b": lambda truth, arrays: truth,
    "x": lambda text, arrays: base64.b64decode(text),
    "n": lambda nothing, arrays: None,
    "t": lambda name, arrays: arrays.get(name),
}


def _numpy_view(
    base: np.ndarray[Any, Any],
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    offset: int,
    nbytes: int,
) -> np.ndarray[Any, Any]:
    kind = _NAME_TO_NUMPY.get(dtype)
    if kind is None:
        kind = _extension_dtype(name, dtype)
    if nbytes == 0:
        return np.empty(shape, kind)
    return base[offset : offset + nbytes].view(kind).reshape(shape)


def _extension_dtype(name: str, dtype: str) -> np.dtype[Any]:
    try:
        ml_dtypes: Any = importlib.import_module("ml_dtypes")
    except ImportError:
        raise TreeError(
            f"tensor `{name}` is {dtype}, which NumPy alone cannot hold",
            hint="install `ml_dtypes` where the script runs, or use framework=\"pytorch\"",
            path=name,
        ) from None
    kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _NAME_TO_EXTENSION[dtype]))
    return kind


def _torch_view(
    file: ModelFile, dtype: str, shape: tuple[int, ...], offset: int, nbytes: int
) -> Any:
    # Not an import statement: without torch installed the types are checked too.
    torch: Any = importlib.import_module("torch")
    kind = getattr(torch, _NAME_TO_TORCH[dtype])
    if nbytes == 0:
        return torch.empty(shape, dtype=kind)
    # One storage per tensor: saving one must not save the whole file.
    flat = torch.frombuffer(file, dtype=torch.uint8, count=nbytes, offset=offset)
    return flat.view(kind).reshape(shape)
