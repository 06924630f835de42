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
) -> bytes | int:
    order = sorted(tensors, key=lambda t: -_ITEM[t[1]])
    parts, at, entries = [], 0, {}
    for name, dtype, shape, source in order:
        data = bytes(source() if callable(source) else source)
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
    ) -> bool:
        self.sent.append({
            "task": task, "model": model, "file": file, "params_type": params_type,
            "metrics": metrics, "meta": json.loads(meta), "state_file": state_file,
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
