"""What a site keeps between tasks: `flare.state`."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from firesteel.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firesteel.client._context import APIContext



class State(MutableMapping[str, Any]):
    """A dict of trees of arrays that outlives the process.

    It belongs to one job and one site, is saved with each `send`, is rolled
    back when that attempt does not count, and never leaves the site. It is
    read from disk when it is first looked at; from then on every `send` of
    this process writes it anew, so a state of many megabytes costs their
    writing per round.
    """

    def __init__(self, context: Callable[[], APIContext]) -> None:
        self._context = context

    def _items(self) -> dict[str, Any]:
        return self._context().state_items()

    def __getitem__(self, key: str) -> Any:
        return self._items()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise ClientError(
                f"flare.state has string keys; {key!r} is a {type(key).__name__}", code="misuse"
            )
        self._items()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._items()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __len__(self) -> int:
        return len(self._items())

    def __repr__(self) -> str:
        return f"State({self._items()!r})"


def load(path: str) -> dict[str, Any]:
    """The state that an earlier process of this site saved."""
    from firesteel import _native, _tree

    file = _native.ModelFile.open(path)
    names = _tree.torch_names(file)
    if names:
        # Left to the script's own import it would come as NumPy arrays.
        import importlib

        importlib.import_module("torch")
    items = _tree.unpack(file, "numpy", names)
    if not isinstance(items, dict):
        raise ClientError(f"{path} is not a saved state", code="malformed")
    return items


def save(items: dict[str, Any], outbox: str, name: str) -> str:
    """Writes the state into the outbox; returns the file's name there."""
    from firesteel import _native, _tree

    packed = _tree.pack(items, root="flare.state")
    _native.write_model(
        os.path.join(outbox, name),
        packed.tensors,
        # An empty state is a state: the tree says so, a file without tensors does not.
        tree=packed.tree if packed.tree is not None or packed.tensors else '{"d":[]}',
        aliases=packed.aliases or None,
        metadata=packed.kinds(),
    )
    return name
