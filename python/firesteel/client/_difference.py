"""What a site's training changed: the difference to the model it received."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel import _tree
from firesteel.errors import ClientError

if TYPE_CHECKING:
    from firesteel._tree import Arrays, Packed


def between(params: Any, received: Arrays) -> Packed:
    """Packs what changed since the model was received, one tensor at a time.

    Integers wrap around: the sum undoes it. Bools have no difference and go as
    they are.

    Raises:
        ClientError: for names, shapes or dtypes that the received model lacks.
    """
    packed = _tree.pack(params)
    if any(received.owner(a) != received.owner(o) for a, o in packed.aliases.items()):
        # Tied here and not there: the differences are not the same.
        packed = _tree.pack(params, ties=False)
    tensors = []
    for name, dtype, shape, _ in packed.tensors:
        if name not in received:
            raise ClientError(
                f"tensor `{name}` is not in the model that was received, so there is no "
                "difference to send",
                hint="send the same names, or use params_transfer_type=\"FULL\" in the recipe",
                code="key-mismatch",
            )
        _, old_dtype, old_shape, _, _ = received.entries[received.owner(name)]
        if old_shape != shape:
            raise ClientError(
                f"tensor `{name}` has shape {shape}, the received model has {old_shape}",
                code="shape-mismatch",
            )
        if old_dtype != dtype:
            raise ClientError(
                f"tensor `{name}` is {dtype}, the received model has {old_dtype}",
                hint="convert it back before sending",
                code="dtype-mismatch",
            )
        source = _subtract(packed.values[name], name, dtype, received)
        tensors.append((name, dtype, shape, source))
    packed.tensors = tensors
    return packed


def _subtract(value: Any, name: str, dtype: str, received: Arrays) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):

        def of_torch() -> Any:
            old = received.get(name, "torch")
            new = value.detach().to("cpu")
            if dtype == "BOOL":
                return _tree.torch_source(new)
            if dtype.startswith("F8"):
                # torch computes nothing in fp8.
                low = new.to(torch.float32) - old.to(torch.float32)
                return _made(_tree.torch_source(low.to(new.dtype)))
            return _made(_tree.torch_source(new - old))

        return of_torch

    def of_numpy() -> Any:
        array = np.asarray(value)
        if dtype == "BOOL":
            return _made(_tree.numpy_source(array))
        return _made(_tree.numpy_source(np.subtract(array, received.get(name, "numpy"))))

    return of_numpy


def _made(source: Any) -> Any:
    return source() if callable(source) else source
