"""Updates that hold only what was changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from firesteel import _tree
from firesteel.errors import ClientError

if TYPE_CHECKING:
    from firesteel._native import ModelFile
    from firesteel._tree import Packed

# A received model up to this size came inside its message and lies in memory,
# where the script may have written to it.
_INLINE = 64 * 1024


def checked(packed: Packed, received: ModelFile | None) -> Packed:
    """The same, when every tensor of it is one of the received model.

    Raises:
        ClientError: naming the tensor that is not, or when no model was received.
    """
    if received is None:
        raise ClientError(
            "a partial update was sent, but no model was received that the rest could be "
            "unchanged from",
            hint="send all params in the first round, or give the recipe a model",
            code="misuse",
        )
    there = {entry[0]: entry for entry in received.tensors()}
    owners = received.aliases()
    for name, dtype, shape, _ in packed.tensors:
        entry = there.get(owners.get(name, name))
        if entry is None:
            raise ClientError(
                f"tensor `{name}` is not in the model that was received, so a partial update "
                "cannot hold it",
                hint="keep the model's names; a part of a state dict has them",
                code="key-mismatch",
            )
        if entry[2] != shape:
            raise ClientError(
                f"tensor `{name}` has shape {shape}, the received model has {entry[2]}",
                code="shape-mismatch",
            )
        if entry[1] != dtype:
            raise ClientError(
                f"tensor `{name}` is {dtype}, the received model has {entry[1]}",
                hint="convert it back before sending",
                code="dtype-mismatch",
            )
    return packed


def changed(packed: Packed, received: ModelFile | None) -> Packed:
    """Without the tensors whose bytes are the received ones.

    Compares with the model's file; a model that came inside its message is small,
    and sent whole.
    """
    if received is None or len(cast(Any, received)) <= _INLINE:
        return packed
    # Anew from its file: what the script wrote to the arrays is not in it.
    pristine = received.reopen()
    there = {entry[0]: entry for entry in pristine.tensors()}
    owners = pristine.aliases()
    old = np.frombuffer(cast(Any, pristine), np.uint8)
    same = set()
    for name, _, _, source in packed.tensors:
        _, _, _, offset, nbytes = there[owners.get(name, name)]
        if _equal(source, old[offset : offset + nbytes]):
            same.add(name)
    # Ties of the received model are ties of the update: both or none.
    gone = same | {alias for alias, owner in packed.aliases.items() if owner in same}
    packed.tensors = [tensor for tensor in packed.tensors if tensor[0] not in same]
    packed.aliases = {a: owner for a, owner in packed.aliases.items() if a not in gone}
    packed.values = {name: value for name, value in packed.values.items() if name not in same}
    if packed.tree is not None and same:
        packed.tree = _pruned(packed.tree, gone)
    if packed.tree is None and not packed.tensors:
        packed.tree = '{"d":[]}'
    return packed


def _equal(source: Any, old: np.ndarray[Any, Any]) -> bool:
    at = 0
    for buffer in _tree.buffers(source):
        new = np.frombuffer(buffer, np.uint8)
        if not _same_bytes(new, old[at : at + new.size]):
            return False
        at += new.size
    return at == old.size


def _same_bytes(new: np.ndarray[Any, Any], old: np.ndarray[Any, Any]) -> bool:
    if new.size != old.size:
        return False
    # Whole words as far as they go, in windows: no mask of the tensor's size.
    words = new.size - new.size % 8
    for start in range(0, words, _tree.WINDOW):
        stop = min(start + _tree.WINDOW, words)
        if not np.array_equal(new[start:stop].view(np.uint64), old[start:stop].view(np.uint64)):
            return False
    return bool(np.array_equal(new[words:], old[words:]))


def _pruned(tree: str, gone: set[str]) -> str | None:
    """The tree without the tensors that are not sent; None when names say it all."""
    whole = json.loads(tree)
    if _only_tensors(whole):
        return None
    node = _kept(whole, gone)
    return json.dumps(
        {"d": []} if node is None else node, ensure_ascii=False, separators=(",", ":")
    )


def _only_tensors(node: dict[str, Any]) -> bool:
    ((tag, content),) = node.items()
    if tag == "d":
        return all(_only_tensors(child) for _, child in content)
    if tag in ("l", "u"):
        return all(_only_tensors(child) for child in content)
    return tag == "t"


def _kept(node: dict[str, Any], gone: set[str]) -> dict[str, Any] | None:
    ((tag, content),) = node.items()
    if tag == "t":
        return None if content in gone else node
    if tag == "d":
        pairs = [[key, _kept(child, gone)] for key, child in content]
        return {"d": [pair for pair in pairs if pair[1] is not None]}
    if tag in ("l", "u"):
        # A list's items are known by their place: None stands where one is gone.
        items = [_kept(child, gone) for child in content]
        return {tag: [{"n": 0} if item is None else item for item in items]}
    return node
