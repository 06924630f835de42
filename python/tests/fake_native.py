"""A small stand-in for `firesteel._native`, so that the Python side is tested alone.

It keeps the real module's signatures (`test_stubs.py` compares both with the
stub), reads and writes real safetensors bytes, and plays a list of tasks.
"""

from __future__ import annotations

import json
import os
from typing import Any

_ITEM = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


class ModelFile(bytearray):
    """A bytearray is a writable buffer, which is all that is asked of a mapping."""

    @staticmethod
    def open(path: str) -> ModelFile:
        with open(path, "rb") as file:
            return ModelFile(file.read())

    @staticmethod
    def from_bytes(data: bytes) -> ModelFile:
        return ModelFile(data)

    def _header(self) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self[:8], "little")
        return json.loads(bytes(self[8 : 8 + length])), 8 + length

    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int, int]]:
        header, start = self._header()
        return [
            (name, e["dtype"], tuple(e["shape"]), start + e["data_offsets"][0],
             e["data_offsets"][1] - e["data_offsets"][0])
            for name, e in header.items()
            if name != "__metadata__"
        ]  # fmt: skip

    def metadata(self) -> dict[str, str]:
        return dict(self._header()[0].get("__metadata__", {}))

    def tree(self) -> str | None:
        return self.metadata().get("firesteel.tree")

    def aliases(self) -> dict[str, str]:
        return dict(json.loads(self.metadata().get("firesteel.aliases", "{}")))

    def reopen(self) -> ModelFile:
        # A plain copy: the tests reopen before they write.
        return ModelFile(self)


def write_model(
    path: str | None,
    tensors: list[tuple[str, str, tuple[int, ...], Any]],
    *,
    tree: str | None = None,
    aliases: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    partial: bool = False,
) -> bytes | int:
    order = sorted(tensors, key=lambda t: -_ITEM[t[1]])
    parts, at, entries = [], 0, {}
    for name, dtype, shape, source in order:
        made = source() if callable(source) else source
        data = b"".join(map(bytes, made)) if hasattr(made, "__next__") else bytes(made)
        size = _ITEM[dtype]
        for n in shape:
            size *= n
        assert len(data) == size, f"{name}: {len(data)} bytes, expected {size}"
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        parts.append(data)
        at += size
    known = dict(metadata or {})
    if tree is not None:
        known["firesteel.tree"] = tree
    if aliases:
        known["firesteel.aliases"] = json.dumps(aliases)
    if partial:
        known["firesteel.partial"] = "1"
    header = json.dumps({**({"__metadata__": known} if known else {}), **entries}).encode()
    header += b" " * (-(len(header) + 8) % 64)
    whole = len(header).to_bytes(8, "little") + header + b"".join(parts)
    if path is None:
        return whole
    with open(path + ".new", "wb") as file:
        file.write(whole)
    os.chmod(path + ".new", 0o400)
    os.rename(path + ".new", path)
    return len(whole)


def model_file(params: Any) -> ModelFile:
    """Params as the model that a task brings; not part of what is stood in for."""
    from firesteel import _tree

    packed = _tree.pack(params)
    data = write_model(None, packed.tensors, tree=packed.tree, aliases=packed.aliases or None)
    assert isinstance(data, bytes)
    return ModelFile.from_bytes(data)


def validate_job(spec_json: str) -> None:
    json.loads(spec_json)


class Task:
    def __init__(
        self, model: ModelFile | None, name: str = "train", round: int = 0, total_rounds: int = 3
    ) -> None:
        self.name = name
        self.round = round
        self.start_round = 0
        self.total_rounds = total_rounds
        self.attempt = 0
        self.meta = "{}"
        self.model = model


class Bridge:
    """Hands out `script` and notes what it is sent."""

    script: list[Task] = []
    hello: dict[str, Any] = {}
    last: Bridge

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.logs: list[tuple[int, str, str]] = []
        self.metrics: list[dict[str, Any]] = []
        self.failures: list[tuple[str, str, str, str]] = []
        self.closed = False
        self.left = list(Bridge.script)
        Bridge.last = self

    @staticmethod
    def connect(socket: str, token: str, rank: int) -> Bridge:
        made = Bridge()
        made.endpoint = (socket, token, rank)  # type: ignore[attr-defined]
        return made

    def welcome(self) -> str:
        return json.dumps({
            "job_id": "digits-1", "job_name": "digits", "site": "site-1", "sites_total": 2,
            "framework": "numpy", "params_transfer_type": "FULL", "exchange_format": "numpy",
            "data": {}, "args": [], "outbox": None, "state_file": None, "seed": None,
            "gc_rounds": 0, "cuda_empty_cache": False, "log_level": "INFO", "config": {},
            **Bridge.hello,
        })  # fmt: skip

    def next(self, timeout: float | None) -> Task | None:
        if timeout == 0:
            raise TimeoutError
        return self.left.pop(0) if self.left else None

    def send(
        self,
        task: Task,
        *,
        model: bytes | None,
        file: str | None,
        params_type: str | None,
        metrics: dict[str, float],
        meta: str,
        state_file: str | None,
        partial: bool = False,
    ) -> bool:
        self.sent.append({
            "task": task, "model": model, "file": file, "params_type": params_type,
            "metrics": metrics, "meta": json.loads(meta), "state_file": state_file,
            "partial": partial,
        })  # fmt: skip
        return True

    def log(self, level: int, logger: str, message: str) -> None:
        self.logs.append((level, logger, message))

    def metric(self, event: str) -> None:
        self.metrics.append(json.loads(event))

    def failed(self, code: str, phase: str, message: str, traceback: str) -> None:
        self.failures.append((code, phase, message, traceback))

    def close(self) -> None:
        self.closed = True


class StreamFile:
    """An open file, and what it was offered as."""

    def __init__(self, path: str, kind: str, id: str = "", name: str = "") -> None:
        self.path, self.kind, self.id, self.name = path, kind, id, name
        with open(path, "rb") as file:
            self.data = file.read()
        self.length = len(self.data)

    @staticmethod
    def open(path: str, kind: str) -> StreamFile:
        return StreamFile(path, kind)

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.length:
            raise OSError(f"{size} bytes from {offset} are not in it")
        return self.data[offset : offset + size]

    def model(self, offset: int, length: int) -> ModelFile:
        return ModelFile(self.data[offset : offset + length])

    def save(self, path: str) -> None:
        with open(path, "wb") as file:
            file.write(self.data)


class StreamLink:
    """An agent that keeps the offers of one process."""

    offers: dict[str, StreamFile] = {}
    open_links: list[StreamLink] = []

    @staticmethod
    def connect(socket: str, token: str, rank: int) -> StreamLink:
        link = StreamLink()
        StreamLink.open_links.append(link)
        return link

    def offer(
        self,
        path: str,
        kind: str,
        *,
        name: str = "",
        to: list[str] = [],  # noqa: B006
        times: int = 0,
        owned: bool = False,
    ) -> tuple[str, int]:
        id = f"{len(StreamLink.offers):032x}"
        if kind == "folder":
            return id, 0
        file = StreamLink.offers[id] = StreamFile(path, kind, id, name)
        return id, file.length

    def withdraw(self, id: str) -> None:
        StreamLink.offers.pop(id, None)

    def fetch(
        self, site: str, *, id: str = "", name: str = "", wait: float = 0.0
    ) -> StreamFile:
        for known, file in StreamLink.offers.items():
            if known == id or (name and file.name == name):
                return file
        from firesteel.errors import ClientError

        raise ClientError(f"site {site} offers nothing of that kind", code="not-offered")

    def close(self) -> None:
        StreamLink.open_links.remove(self)


class ItemsWriter:
    """Writes the layout of docs/specs/stream.md."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray(b"firesteel-items\n" + (1).to_bytes(4, "little") + bytes(44))
        self.count = 0

    def _add(self, kind: int, data: bytes) -> None:
        self.data += len(data).to_bytes(8, "little") + bytes([kind]) + bytes(55)
        self.data += data + bytes(-len(data) % 64)
        self.count += 1

    def add_model(
        self,
        tensors: list[tuple[str, str, tuple[int, ...], Any]],
        *,
        tree: str | None = None,
        aliases: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        data = write_model(None, tensors, tree=tree, aliases=aliases, metadata=metadata)
        assert isinstance(data, bytes)
        self._add(1, data)

    def add_bytes(self, data: Any) -> None:
        self._add(2, bytes(data))

    def finish(self) -> int:
        self.data += self.count.to_bytes(8, "little") + bytes([255]) + bytes(55)
        with open(self.path, "wb") as file:
            file.write(self.data)
        return len(self.data)

    def discard(self) -> None:
        self.data.clear()


class Simulation:
    """Knows how a run ends before it starts."""

    outcome: dict[str, Any] = {}
    started: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def __init__(self, spec_json: str, options_json: str) -> None:
        Simulation.started.append((json.loads(spec_json), json.loads(options_json)))
        self.aborted = ""

    def start(self) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        return True

    def abort(self, reason: str) -> None:
        self.aborted = reason

    def status(self) -> str:
        return json.dumps(Simulation.outcome)

    def result(self) -> str:
        return json.dumps(Simulation.outcome)


def make_bundle(
    kit_dir: str,
    spec_json: str,
    code: list[tuple[str, str]],
    initial_model: str | None,
    out: str,
    submit_key: str | None = None,
) -> str:
    """A tar of the spec and what goes with it, unsigned."""
    import io
    import tarfile

    with tarfile.open(out, "w") as bundle:
        text = spec_json.encode()
        member = tarfile.TarInfo("job.json")
        member.size = len(text)
        bundle.addfile(member, io.BytesIO(text))
        for inside, path in code:
            bundle.add(path, f"code/{inside}")
        if initial_model is not None:
            bundle.add(initial_model, "models/initial.safetensors")
    return submit_key or "random"


class Admin:
    """Talks plain HTTP to the port that stands in the kit."""

    def __init__(self, kit_dir: str) -> None:
        with open(os.path.join(kit_dir, "port"), encoding="utf-8") as file:
            self.port = int(file.read())
        self.closed = False

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        return self._send(method, path, body, {})

    def upload(self, path: str, file: str, key: str | None = None) -> tuple[int, bytes]:
        with open(file, "rb") as data:
            return self._send(
                "POST", path, data.read(), {"firesteel-submit-key": key} if key else {}
            )

    def download(self, path: str, file: str) -> None:
        status, data = self._send("GET", path, None, {})
        assert status == 200
        with open(file, "wb") as out:
            out.write(data)

    def log(
        self, path: str, after: str | None = None, tail: int | None = None, wait: int = 0
    ) -> tuple[bytes, str | None, bool]:
        asked = f"{path}?tail={tail}" if tail is not None else path
        return self._send("GET", asked, None, {})[1], None, True

    def close(self) -> None:
        self.closed = True

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        import http.client

        from firesteel.errors import NoConnection

        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, headers)
            answer = link.getresponse()
            return answer.status, answer.read()
        except OSError as error:
            raise NoConnection(f"the server does not answer: {error}") from None
        finally:
            link.close()
