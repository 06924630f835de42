"""What `model=` and `initial_ckpt=` may be, as params."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel._models import NUMPY_KEY, load_model
from firesteel.errors import Error, SpecError
from firesteel.recipe import _fields

if TYPE_CHECKING:
    from collections.abc import Mapping

# How scikit-learn's linear models and perceptrons name what they have learned.
_LEARNED = (("coef_", "intercept_"), ("coefs_", "intercepts_"), ("cluster_centers_",))


def framework_of(model: Any) -> str | None:
    """The framework that a model belongs to; None when it could be any."""
    if model is None or _class_path(model) is not None:
        return None
    torch = sys.modules.get("torch")
    if torch is not None:
        values = model.values() if isinstance(model, dict) else (model,)
        if any(isinstance(value, (torch.nn.Module, torch.Tensor)) for value in values):
            return "pytorch"
    if hasattr(model, "get_params") and hasattr(model, "fit"):
        return "sklearn"
    return "numpy" if isinstance(model, (dict, list, tuple, np.ndarray)) else None


def build(model: Any) -> Any:
    """The model itself, made from its class path where that was given.

    Raises:
        SpecError: when the class cannot be found or made.
    """
    path = _class_path(model)
    if path is None:
        return model
    if not isinstance(path, str) or "." not in path:
        raise _fields.refuse("model", model, "a class path such as \"model.Net\"")
    _fields.known_keys("model", model, ("class_path", "path", "args"))
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise SpecError(
            f"`model`: the class {path} cannot be imported: {problem}",
            hint=f"run from the folder that holds {module.partition('.')[0]}.py, or put it "
            "on PYTHONPATH",
            field="model",
        ) from None
    args = model.get("args") or {}
    try:
        return kind(**args)
    except TypeError as problem:
        raise SpecError(
            f"`model`: {path} cannot be made from {args}: {problem}", field="model"
        ) from None


def _class_path(model: Any) -> Any:
    if not isinstance(model, dict):
        return None
    if "class_path" in model:
        return model["class_path"]
    plain = isinstance(model.get("path"), str) and set(model) <= {"path", "args"}
    return model["path"] if plain else None


def params_of(model: Any, field: str = "model") -> Any:
    """The params of a model instance, an array, or a tree of arrays.

    Raises:
        SpecError: when it has none that could be sent.
    """
    from firesteel import _tree

    model = build(model)
    if model is None:
        return None
    state_dict = getattr(model, "state_dict", None)
    if callable(state_dict):
        params: Any = dict(state_dict())
    elif isinstance(model, dict):
        params = model
    elif hasattr(model, "get_params") and hasattr(model, "fit"):
        params = _learned(model, field)
    elif callable(getattr(model, "get_weights", None)):
        # Keras: by layer, as scripts take and give it; else the plain list.
        layered = hasattr(model, "layers")
        params = _tree.layer_weights(model) if layered else list(model.get_weights())
    elif isinstance(model, np.ndarray):
        params = {NUMPY_KEY: model}
    elif isinstance(model, (list, tuple)):
        params = _sequence(model, field)
    else:
        kind = type(model)
        raise SpecError(
            f"`{field}` is a {kind.__module__}.{kind.__qualname__}, which has no params to send",
            hint="give a torch module, a fitted scikit-learn estimator, an array, a dict of "
            'arrays, or {"class_path": "model.Net", "args": {…}}',
            field=field,
        )
    try:
        _tree.pack(params, root=field)
    except Error as problem:
        raise SpecError(problem.message, hint=problem.hint, field=field) from None
    return params


def _learned(model: Any, field: str) -> dict[str, Any]:
    for names in _LEARNED:
        if all(hasattr(model, name) for name in names):
            return {name: getattr(model, name) for name in names}
    raise SpecError(
        f"`{field}`: this {type(model).__name__} has not learned anything yet",
        hint="give its arrays, {\"coef\": np.zeros((classes, features)), …}; or fit it on a few "
        "samples of every class; or leave the model out, and the first round makes it",
        field=field,
    )


def _sequence(model: Any, field: str) -> Any:
    if any(isinstance(item, (np.ndarray, dict)) or hasattr(item, "detach") for item in model):
        return model
    try:
        # FLARE's NumPy models are float32; a list of numbers says nothing else.
        return {NUMPY_KEY: np.array(model, dtype=np.float32)}
    except (TypeError, ValueError) as problem:
        raise SpecError(f"`{field}` is a list that is no array: {problem}", field=field) from None


def from_checkpoint(path: Any, framework: str) -> Any:
    """The params in a checkpoint.

    Raises:
        SpecError: when there is no such file, or it holds no params.
    """
    given = os.fspath(path) if isinstance(path, os.PathLike) else path
    name = _fields.text("initial_ckpt", given, expected="the path of a model file")
    try:
        loaded = load_model(name, framework=framework)
    except Error as problem:
        raise SpecError(
            f"`initial_ckpt`: {problem.message}", hint=problem.hint, field="initial_ckpt"
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        # What FLARE saves: {"model": state_dict, "train_conf": …}.
        loaded = loaded["model"]
    return params_of(loaded, "initial_ckpt")


def check_fits(checkpoint: Any, model: Any) -> None:
    """Refuses a checkpoint of another architecture than the model's.

    Raises:
        SpecError: naming the tensors.
    """
    from firesteel import _tree

    have = {name: shape for name, _, shape, _ in _tree.pack(checkpoint).tensors}
    want = {name: shape for name, _, shape, _ in _tree.pack(model).tensors}
    problem = _first_difference(have, want)
    if problem:
        raise SpecError(
            f"`initial_ckpt` does not fit `model`: {problem}",
            hint="give the model of the checkpoint, or leave `model` out",
            field="initial_ckpt",
        )


def _first_difference(
    have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]]
) -> str:
    for name, shape in want.items():
        if name not in have:
            return f"it lacks `{name}`"
        if have[name] != shape:
            return f"`{name}` has shape {have[name]}, the model's has {shape}"
    extra = [name for name in have if name not in want]
    return f"it has `{extra[0]}`, which the model lacks" if extra else ""
