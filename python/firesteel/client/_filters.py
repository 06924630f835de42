"""Filters of the user's own, in the trainer's process."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from firesteel import _tree
from firesteel.client._model import FLModel
from firesteel.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firesteel.filters import Filter, FilterContext


def load(described: Sequence[dict[str, Any]]) -> list[Filter]:
    """Makes filters as the job describes them.

    Raises:
        ClientError: when a module or a class is not there.
    """
    return [_make(one) for one in described]


def _make(described: dict[str, Any]) -> Filter:
    from firesteel.filters import Filter

    name, file = described["module"], described.get("file")
    try:
        module = _module(name, file)
        kind: Any = module
        for part in described["class"].split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError, OSError) as error:
        where = file or name
        raise ClientError(
            f"the filter {described['class']} of `{where}` is not there: {error}",
            hint="the module must lie where the job's script lies, or be installed at the site",
            code="misuse",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Filter)):
        raise ClientError(
            f"{described['class']} of `{name}` is no firesteel.filters.Filter", code="misuse"
        )
    made: Filter = kind(**described.get("args", {}))
    return made


def _module(name: str, file: str | None) -> Any:
    known = sys.modules.get(name)
    if file is None:
        return known or importlib.import_module(name)
    if known is not None and _same(getattr(known, "__file__", None), file):
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"`{file}` is no Python file")
    module = importlib.util.module_from_spec(spec)
    # As `import` does it, so that a script that imports it has the same class.
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _same(one: str | None, other: str) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def run(filters: Sequence[Filter], model: FLModel, context: FilterContext) -> FLModel:
    """Takes a model through filters, one after the other.

    Raises:
        ClientError: when one gives back something else than a model.
    """
    for one in filters:
        kind = model.params_type
        given = one.process(model, context)
        if not isinstance(given, FLModel):
            raise ClientError(
                f"the filter {type(one).__name__} gave back a {type(given).__name__}, "
                "expected an FLModel",
                hint="end `process` with `return model`",
                code="misuse",
            )
        if given.params is not None and given.params_type is None:
            given.params_type = kind
        model = given
    return model


def unpacked(packed: _tree.Packed, exchange: str | None) -> Any:
    """The params that something packed would be sent as, as arrays of their own."""
    made = _Made(packed, exchange)
    if packed.tree is None:
        return {name: made.get(name) for name in made.entries}
    return _tree._value(json.loads(packed.tree), made)  # type: ignore[arg-type]


class _Made:
    """Arrays by name, made from a packed tree's sources."""

    def __init__(self, packed: _tree.Packed, exchange: str | None) -> None:
        self.entries = {tensor[0]: tensor for tensor in packed.tensors}
        self.aliases = packed.aliases
        self.torch = exchange == "pytorch"
        self.made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        import numpy as np

        name = self.aliases.get(name, name)
        if name not in self.made:
            _, dtype, shape, source = self.entries[name]
            parts = [bytes(memoryview(part)) for part in _tree.buffers(source)]
            data = bytearray(b"".join(parts))
            if self.torch:
                torch: Any = importlib.import_module("torch")
                kind = getattr(torch, _tree._NAME_TO_TORCH[dtype])
                flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
                self.made[name] = flat.reshape(shape)
            else:
                base = np.frombuffer(data, np.uint8)
                self.made[name] = _tree._numpy_view(base, name, dtype, shape, 0, len(data))
        return self.made[name]
