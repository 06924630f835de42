"""What a site's training changed: the difference to the model it received."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel import _tree
from firesteel.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """The difference's bytes, made window by window when it is their turn."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        new = value.detach()
        if dtype == "BOOL":
            return _tree.torch_source(new)

        def of_torch() -> Iterator[Any]:
            at, old = 0, received.get(name, "torch").reshape(-1)
            for part in _tree.parts(new, max(1, _tree.WINDOW // new.element_size())):
                now = part.to("cpu").reshape(-1)
                was = old[at : at + now.numel()]
                at += now.numel()
                if dtype.startswith("F8"):
                    # torch computes nothing in fp8.
                    low = now.to(torch.float32) - was.to(torch.float32)
                    yield _tree.torch_bytes(low.to(new.dtype))
                else:
                    yield _tree.torch_bytes(now - was)

        return of_torch
    array = np.asarray(value)
    if dtype == "BOOL":
        return _tree.numpy_source(array)

    def of_numpy() -> Iterator[Any]:
        at, old = 0, received.get(name, "numpy").reshape(-1)
        for part in _tree.parts(array, max(1, _tree.WINDOW // array.itemsize)):
            difference = np.subtract(part.reshape(-1), old[at : at + part.size])
            at += part.size
            yield from _tree.buffers(_tree.numpy_source(difference))

    return of_numpy
