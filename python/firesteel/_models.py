"""Model files of any common format."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from firesteel.errors import SpecError, StoreError

__all__ = ["load_model", "save_model"]

SUFFIXES = (".safetensors", ".npy", ".npz", ".pt", ".pth")

# The key under which a lone array travels, as FLARE's NumPy jobs call it.
NUMPY_KEY = "numpy_key"


def save_model(path: str | os.PathLike[str], params: Any) -> str:
    """Writes params as a model file; the suffix says which kind.

    `.safetensors` takes any params tree; `.npz` a flat dict of arrays; `.npy`
    one array; `.pt` and `.pth` a tree, whose arrays become torch tensors.

    Returns:
        The path.

    Raises:
        SpecError: for another suffix, or params that the format cannot hold.
        StoreError: when the file cannot be written.
    """
    name = os.fspath(path)
    suffix = _suffix(name)
    try:
        if suffix == ".safetensors":
            _save_safetensors(name, params)
        elif suffix == ".npy":
            with open(name, "wb") as file:
                np.save(file, _lone_array(name, params), allow_pickle=False)
        elif suffix == ".npz":
            with open(name, "wb") as file:
                np.savez(file, allow_pickle=False, **_flat_arrays(name, params))
        else:
            importlib.import_module("torch").save(_to_torch(params), name)
    except OSError as problem:
        raise StoreError(f"{name} could not be written: {problem.strerror or problem}") from None
    return name


def load_model(path: str | os.PathLike[str], *, framework: str = "numpy") -> Any:
    """Reads a model file as params; `.pt` files only with plain tensors in them.

    Args:
        path: a `.safetensors`, `.npy`, `.npz`, `.pt` or `.pth` file.
        framework: `numpy` or `pytorch`, the arrays that a `.safetensors` file
            comes as. They lie in the mapped file; writing to them does not
            change it.

    Raises:
        SpecError: for another suffix, or a file that is not what its suffix says.
        StoreError: when there is no such file, or it cannot be read.
    """
    name = os.fspath(path)
    suffix = _suffix(name)
    if not os.path.isfile(name):
        raise StoreError(
            f"there is no model file {name}",
            hint=f"paths are relative to {os.getcwd()}" if not os.path.isabs(name) else "",
        )
    try:
        if suffix == ".safetensors":
            from firesteel import _native, _tree

            kind = "torch" if framework == "pytorch" else "numpy"
            return _tree.unpack(_native.ModelFile.open(os.path.abspath(name)), kind)
        if suffix == ".npy":
            return np.load(name, allow_pickle=False)
        if suffix == ".npz":
            with np.load(name, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        torch = importlib.import_module("torch")
        return torch.load(name, map_location="cpu", weights_only=True)
    except OSError as problem:
        raise StoreError(f"{name} could not be read: {problem.strerror or problem}") from None
    except (ValueError, KeyError, EOFError, RuntimeError) as problem:
        raise _not_plain(name, suffix, problem) from None
    except ImportError:
        raise SpecError(
            f"{name} needs torch, which is not installed here", hint="pip install torch"
        ) from None
    except Exception as problem:
        # By their names, for which neither zipfile nor pickle is imported.
        if type(problem).__name__ == "BadZipFile":
            raise _not_plain(name, suffix, problem) from None
        if type(problem).__name__ != "UnpicklingError":
            raise
        raise SpecError(
            f"{name} holds more than plain tensors, and is not loaded: that would run its code",
            hint="save `model.state_dict()` instead of the model",
        ) from None


def _not_plain(name: str, suffix: str, problem: Exception) -> SpecError:
    return SpecError(f"{name} is not a {suffix} file of plain arrays: {problem}")


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in SUFFIXES:
        raise SpecError(
            f"{name} has the suffix {suffix!r}, expected one of {', '.join(SUFFIXES)}"
        )
    return suffix


def _save_safetensors(name: str, params: Any) -> None:
    from firesteel import _native, _tree

    packed = _tree.pack(params)
    _native.write_model(
        os.path.abspath(name),
        packed.tensors,
        tree=packed.tree,
        aliases=packed.aliases or None,
        metadata=packed.kinds(),
    )


def _lone_array(name: str, params: Any) -> np.ndarray[Any, Any]:
    if isinstance(params, dict) and len(params) == 1:
        (params,) = params.values()
    if isinstance(params, (dict, list, tuple)):
        raise SpecError(
            f"{name}: a .npy file holds one array, the params have {len(params)}",
            hint="use .npz or .safetensors",
        )
    return _plain_array(name, params)


def _flat_arrays(name: str, params: Any) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(params, dict):
        raise SpecError(f"{name}: a .npz file holds a dict of arrays", hint="use .safetensors")
    flat = {}
    for key, value in params.items():
        if isinstance(value, (dict, list, tuple, str, bytes)) or value is None:
            raise SpecError(
                f"{name}: params[{key!r}] is a {type(value).__name__}, a .npz file holds arrays",
                hint="use .safetensors",
            )
        flat[key] = _plain_array(name, value)
    return flat


def _plain_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise SpecError(f"{name}: an array of Python objects cannot be saved")
    return array


def _to_torch(params: Any) -> Any:
    torch = importlib.import_module("torch")
    if isinstance(params, dict):
        return {key: _to_torch(value) for key, value in params.items()}
    if isinstance(params, (list, tuple)):
        return type(params)(_to_torch(value) for value in params)
    if isinstance(params, np.ndarray):
        # A copy: a tensor over a mapping would be saved with all of it.
        return torch.from_numpy(np.array(params))
    if isinstance(params, torch.Tensor):
        return params.detach().clone()
    return params
