"""Things too large for memory, fetched at each receiver's own pace.

A site offers a file, a folder, params or the items of an iterable; any site of
the job that is allowed to fetches them:

    from firesteel import stream

    ref = stream.offer("embeddings.npy", name="embeddings")     # at site-1
    path = stream.retrieve("site-1", "embeddings", wait=60)     # at site-2

A `Ref` is a dict of plain values: it can travel in an `FLModel`'s meta, and
`fetch` takes it wherever it arrives. What is offered lies on disk; offering an
iterable takes the memory of one item, fetching a file that of one window.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from firesteel.client._context import APIContext, endpoint
from firesteel.errors import ClientError, StoreError, StreamError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from firesteel._native import ItemsWriter, StreamFile, StreamLink

__all__ = ["Items", "Ref", "fetch", "offer", "retrieve", "withdraw"]

# What marks a dict as a Ref, and the version of its form.
_MARK = "firesteel.ref"
# The layout of a file of items: docs/specs/stream.md.
_MAGIC = b"firesteel-items\n" + (1).to_bytes(4, "little")
_BLOCK = 64
_MODEL, _BYTES, _END = 1, 2, 255
_lock = threading.Lock()
_number = 0


class Ref(dict[str, Any]):
    """Where something that was offered can be fetched: a dict of plain values.

    >>> ref = Ref(site="site-1", id="ab12", kind="file", name="weights", length=5)
    >>> ref.site, ref.name, ref.length
    ('site-1', 'weights', 5)
    >>> Ref.of(dict(ref)) == ref
    True
    """

    def __init__(self, *, site: str, id: str, kind: str, name: str, length: int) -> None:
        super().__init__({_MARK: 1}, site=site, id=id, kind=kind, name=name, length=length)

    @staticmethod
    def of(value: Any) -> Ref:
        """A Ref that arrived as a plain dict.

        Raises:
            StreamError: when it is none.
        """
        if isinstance(value, Ref):
            return value
        if not isinstance(value, dict) or value.get(_MARK) != 1:
            kind = "dict without a ref's fields" if isinstance(value, dict) else _kind(value)
            raise StreamError(
                f"fetch() was given a {kind}, expected a Ref",
                hint="give what offer() returned at the other site; to ask by name there is "
                "retrieve(site, name)",
                code="misuse",
            )
        try:
            texts = {name: value[name] for name in ("site", "id", "kind", "name")}
            length = int(value["length"])
        except (KeyError, TypeError, ValueError):
            raise StreamError("the Ref lacks a field", code="misuse") from None
        if not all(isinstance(text, str) for text in texts.values()) or length < 0:
            raise StreamError("a field of the Ref is not what it should be", code="misuse")
        return Ref(length=length, **texts)

    @property
    def site(self) -> str:
        """The site that offers it."""
        return str(self["site"])

    @property
    def id(self) -> str:
        """By which it is found. Who knows it may fetch: treat it like a key."""
        return str(self["id"])

    @property
    def name(self) -> str:
        """The name it can be retrieved by; may be empty."""
        return str(self["name"])

    @property
    def kind(self) -> str:
        """`file`, `model`, `items` or `folder`."""
        return str(self["kind"])

    @property
    def length(self) -> int:
        """Its size in bytes; 0 for a folder."""
        return int(self["length"])

    def __repr__(self) -> str:
        # Without the id: reprs end up in logs.
        name = f" {self.name!r}" if self.name else ""
        return f"<Ref: {self.kind}{name} of {self.site}, {self.length:,} bytes>"


class Items:
    """The items of an iterable that was offered; read one by one from disk.

    It can be gone through any number of times, and holds one item at a time.
    Arrays of an item lie in the mapped file; writing to them changes nothing.
    """

    def __init__(self, file: StreamFile) -> None:
        self._file = file
        if file.length < 2 * _BLOCK or file.read(0, len(_MAGIC)) != _MAGIC:
            raise StreamError("what was fetched is no file of items", code="malformed")
        kind, self._count = self._head(file.length - _BLOCK)
        if kind != _END:
            raise StreamError("the file of items breaks off: it has no end", code="malformed")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        at, seen = _BLOCK, 0
        while True:
            kind, length = self._head(at)
            if kind == _END:
                break
            start = at + _BLOCK
            end = start + length
            # The end mark comes after every item.
            if end > self._file.length - _BLOCK:
                raise StreamError(
                    f"item {seen} has {length} bytes, which the file does not", code="malformed"
                )
            if kind == _MODEL:
                yield _params(self._file, start, length)
            elif kind == _BYTES:
                yield self._file.read(start, length)
            else:
                raise StreamError(f"item {seen} is of the unknown kind {kind}", code="malformed")
            at = end + -end % _BLOCK
            seen += 1
        if seen != self._count or at + _BLOCK != self._file.length:
            raise StreamError(
                f"the file of items has {seen} items, its end says {self._count}", code="malformed"
            )

    def _head(self, at: int) -> tuple[int, int]:
        head = self._file.read(at, 9)
        return head[8], int.from_bytes(head[:8], "little")

    def __repr__(self) -> str:
        return f"<Items: {self._count:,}, {self._file.length:,} bytes>"


def offer(
    thing: str | os.PathLike[str] | dict[str, Any] | Iterable[Any],
    *,
    name: str = "",
    sites: Sequence[str] = (),
    times: int = 0,
    move: bool = False,
    ctx: APIContext | None = None,
) -> Ref:
    """Lets other sites fetch something, until the job ends or `withdraw`.

    Args:
        thing: the path of a file or folder; a dict of params (a state dict, say)
            or one array; or an iterable, whose items are params or bytes.
        name: by which `retrieve` finds it; without one only who has the Ref
            can fetch it. An earlier offer of that name ends. A folder needs one.
        sites: the sites that may fetch it; all of the job by default.
        times: the offer ends after so many have fetched it; 0: never.
        move: the file is given away: it disappears from its place, and
            receivers on this machine get it without a copy.
        ctx: see `firesteel.client`.

    A file that is offered must stay as it is until it has been fetched: one that
    was changed is refused. Params and items are written to disk by this call, one
    tensor at a time, and may be changed afterwards. Of a folder, the regular
    files below it are handed out by name; links are not followed.

    Raises:
        StreamError: when the offer is not taken.
        StoreError: when there is no such file.
        TreeError: when params or an item hold something that cannot be sent.
    """
    context = _context(ctx)
    if isinstance(sites, str):
        sites = (sites,)
    terms: dict[str, Any] = {"name": name, "to": list(sites), "times": times}
    path, kind, owned = _on_disk(context, thing, move)
    if kind == "folder" and not name:
        raise StreamError(
            "a folder is offered under a name, by which its files are asked for",
            hint='offer(folder, name="results"), then retrieve(site, "results/a.csv")',
            code="misuse",
        )
    site = str(context.welcome.get("site"))
    try:
        with _link(context) as link:
            id, length = link.offer(path, kind, owned=owned, **terms)
    except BaseException:
        if owned:
            _remove(path)
        raise
    if owned and kind != "file":
        # The agent has it open; a file without a name leaves nothing behind. A
        # moved file keeps its own, so that receivers can be given another.
        _remove(path)
    return Ref(site=site, id=id, kind=kind, name=name, length=length)


def fetch(
    ref: Ref | dict[str, Any],
    *,
    path: str | os.PathLike[str] | None = None,
    ctx: APIContext | None = None,
) -> Any:
    """Fetches what a Ref stands for.

    Args:
        ref: what `offer` returned, as it is or as the plain dict it travels as.
        path: where a file is put; by default into a folder of this job, which
            goes when the job ends.
        ctx: see `firesteel.client`.

    Returns:
        For a file its path; for params the params, whose arrays lie in the
        mapped file; for an iterable `Items`, which are read one by one.

    Raises:
        StreamError: when the offer has ended, is not for this site, its file has
            changed, or its site cannot be reached.
    """
    ref = Ref.of(ref)
    if ref.kind == "folder":
        raise StreamError(
            "a folder is not fetched whole",
            hint=f"retrieve({ref.site!r}, '{ref.name}/<path>') brings one of its files",
            code="misuse",
        )
    context = _context(ctx)
    with _link(context) as link:
        file = link.fetch(ref.site, id=ref.id)
    return _received(context, file, path)


def retrieve(
    site: str,
    name: str,
    *,
    path: str | os.PathLike[str] | None = None,
    wait: float = 0.0,
    ctx: APIContext | None = None,
) -> Any:
    """Fetches what a site offers under a name.

    Args:
        site: the site's name.
        name: the offer's name; `<folder>/<path>` for a file in an offered folder.
        path: as for `fetch`.
        wait: seconds to wait for the offer to be made.
        ctx: see `firesteel.client`.

    Returns:
        As `fetch`.

    Raises:
        StreamError: as `fetch`; and for names that lead out of a folder.
    """
    context = _context(ctx)
    with _link(context) as link:
        file = link.fetch(site, name=name, wait=wait)
    return _received(context, file, path)


def withdraw(ref: Ref | dict[str, Any], *, ctx: APIContext | None = None) -> None:
    """Ends an offer of this site; who has fetched it keeps what it has."""
    with _link(_context(ctx)) as link:
        link.withdraw(Ref.of(ref).id)


# -- sending ---------------------------------------------------------------------


def _on_disk(context: APIContext, thing: Any, move: bool) -> tuple[str, str, bool]:
    """The file to offer, what it is, and whether it is ours."""
    if isinstance(thing, (str, os.PathLike)):
        path = os.path.abspath(os.fspath(thing))
        if os.path.isdir(path) and not move:
            return path, "folder", False
        if not os.path.isfile(path):
            raise StoreError(
                f"there is no file {path} to offer" + (" and move" if move else ""),
                hint="" if os.path.isabs(os.fspath(thing)) else f"paths are relative to {os.getcwd()}",
            )
        return (_moved(context, path), "file", True) if move else (path, "file", False)
    if move:
        raise StreamError("`move` is for files", hint="leave it out", code="misuse")
    if isinstance(thing, dict) or _is_array(thing):
        path = _new_path(context, "offer", ".safetensors")
        _write_params(path, thing)
        return path, "model", True
    if isinstance(thing, (bytes, bytearray, memoryview)) or not hasattr(thing, "__iter__"):
        raise StreamError(
            f"a {_kind(thing)} cannot be offered",
            hint="offer a path, a dict of params, an array, or an iterable of those or of bytes; "
            "[data] is an iterable of one item",
            code="misuse",
        )
    path = _new_path(context, "offer", ".items")
    _write_items(path, thing)
    return path, "items", True


def _write_params(path: str, params: Any) -> None:
    from firesteel import _native, _tree

    packed = _tree.pack(params)
    _native.write_model(
        path,
        packed.tensors,
        tree=_tree_text(packed),
        aliases=packed.aliases or None,
        metadata=packed.kinds(),
    )


def _write_items(path: str, items: Iterable[Any]) -> None:
    from firesteel import _native, _tree

    writer: ItemsWriter = _native.ItemsWriter(path)
    try:
        # Counted by hand: `enumerate` holds on to the item before.
        number = 0
        for item in items:
            if isinstance(item, (bytes, bytearray, memoryview)):
                writer.add_bytes(item)
            else:
                packed = _tree.pack(item, root=f"items[{number}]")
                writer.add_model(
                    packed.tensors,
                    tree=_tree_text(packed),
                    aliases=packed.aliases or None,
                    metadata=packed.kinds(),
                )
                del packed
            # Not held while the next one is made.
            del item
            number += 1
        writer.finish()
    except BaseException:
        writer.discard()
        raise


def _tree_text(packed: Any) -> str | None:
    # An empty dict is a value: a file without tensors does not say so.
    return packed.tree if packed.tree is not None or packed.tensors else '{"d":[]}'


def _moved(context: APIContext, path: str) -> str:
    own = _new_path(context, "offer", "-" + os.path.basename(path)[-100:])
    try:
        os.rename(path, own)
    except OSError:
        # Another file system: it costs a copy after all.
        import shutil

        shutil.copyfile(path, own)
        os.unlink(path)
    os.chmod(own, 0o400)
    return own


def _is_array(thing: Any) -> bool:
    from firesteel import _tree

    return _tree.is_leaf_array(thing)


# -- receiving -------------------------------------------------------------------


def _received(
    context: APIContext, file: StreamFile, path: str | os.PathLike[str] | None
) -> Any:
    if file.kind == "model" and path is None:
        return _params(file, 0, file.length)
    if file.kind == "items" and path is None:
        return Items(file)
    if path is None:
        name = os.path.basename(file.name) or "file"
        target = _new_path(context, "fetched", "-" + name[-100:])
    else:
        target = os.path.abspath(os.fspath(path))
    file.save(target)
    return target


def _params(file: StreamFile, offset: int, length: int) -> Any:
    from firesteel import _tree

    model = file.model(offset, length)
    return _tree.unpack(model, "numpy", _tree.torch_names(model))


# -- the connection --------------------------------------------------------------


def _context(ctx: APIContext | None) -> APIContext:
    from firesteel import client

    context = client._chosen(ctx)
    if not context.connected:
        raise ClientError(
            "firesteel.stream was used after flare.shutdown()",
            hint="offer and fetch before the end",
            code="misuse",
        )
    if not context.welcome.get("streams"):
        raise StreamError(
            "this site serves no streams",
            hint="install the agent's version of firesteel in the trainer's environment",
            code="misuse",
        )
    return context


@contextlib.contextmanager
def _link(context: APIContext) -> Iterator[StreamLink]:
    """A connection for one question; those that answered are used again."""
    from firesteel import _native

    # A forked process must not speak on its parent's connections.
    process = os.getpid()
    with _lock:
        if context._links_of != process:
            context._links, context._links_of = [], process
        link = context._links.pop() if context._links else None
    if link is None:
        socket, token, _ = endpoint(context.config_file)
        link = _native.StreamLink.connect(socket, token, context.rank)
    try:
        yield link
    except ClientError as problem:
        if not problem.code:
            # Cut, or out of step: of no further use.
            link.close()
            raise
        context._links.append(link)
        raise StreamError(problem.message, hint=problem.hint, code=problem.code) from None
    except BaseException:
        link.close()
        raise
    context._links.append(link)


def _new_path(context: APIContext, what: str, suffix: str) -> str:
    global _number
    with _lock:
        _number += 1
        number = _number
    outbox = context._outbox()
    if what == "fetched":
        outbox = os.path.join(outbox, "fetched")
        os.makedirs(outbox, mode=0o700, exist_ok=True)
    return os.path.join(outbox, f"{what}-{os.getpid()}-{number}{suffix}")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _kind(value: Any) -> str:
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"

