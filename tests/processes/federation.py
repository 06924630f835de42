"""A server and sites as processes of their own, over mutual TLS on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("FIRESTEEL_BINARY", ROOT / "python/firesteel/_bin/firesteel"))

#: Seconds within which anything has to happen.
PATIENCE = 60.0


T = TypeVar("T")


def until(ask: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Asks again and again until there is an answer."""
    deadline = time.monotonic() + patience
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < deadline, f"it did not happen in time: {what}"
        time.sleep(0.02)


class Process:
    """A `firesteel dev …` that ends with the test."""

    def __init__(self, place: Path, name: str, *args: str | Path) -> None:
        self.name = name
        self.out = place / f"{name}.out"
        self.err = place / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [BINARY, "dev", *map(str, args)],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self) -> list[dict[str, Any]]:
        lines = self.out.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def event(self, name: str, patience: float = PATIENCE) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            for event in self.events():
                if event["event"] == name:
                    return event
            if self.process.poll() is not None and name != "ended":
                raise AssertionError(f"{self.name} ended: {self.told()}")
            return None

        return until(found, f"{self.name}: {name}\n{self.told()}", patience)

    def wait(self, patience: float = PATIENCE) -> int:
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end: {self.told()}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def told(self) -> str:
        return self.out.read_text() + self.err.read_text()


class Federation:
    """One job's processes and everything that lies around them."""

    def __init__(self, place: Path, spec: dict[str, Any], *server_args: str) -> None:
        self.place = place
        self.spec = spec
        self.server_args = server_args
        self.processes: list[Process] = []
        self.identities = place / "identities"
        count = len(spec["sites"])
        subprocess.run(
            [BINARY, "dev", "identities", self.identities, "--sites", str(count)], check=True
        )
        self.job = place / "job.json"
        self.job.write_text(json.dumps(spec))
        self.root = place / "runs"
        self.server = self.start_server()
        self.address: str = self.server.event("listening")["address"]

    def start_server(self, *more: str) -> Process:
        return self._start(
            "server", "server", "--job", self.job, "--identity", self.identities / "server",
            "--root", self.root, "--console", "plain", *self.server_args, *more,
        )

    def site(self, name: str, *more: str, connect: str | None = None) -> Process:
        return self._start(
            name, "site", "--name", name, "--identity", self.identities / name,
            "--root", self.place / "sites" / name, "--python", sys.executable,
            "--connect", connect or self.address, "--server-name", "localhost",
            "--console", "plain", *more,
        )

    def stubs(self, names: list[str], file: Path, *more: str, connect: str | None = None) -> Process:
        return self._start(
            "stubs", "stub-site", "--names", ",".join(names), "--identities", self.identities,
            "--file", file, "--root", self.place / "stubs",
            "--connect", connect or self.address, "--server-name", "localhost", *more,
        )

    def _start(self, name: str, *args: str | Path) -> Process:
        process = Process(self.place, f"{name}-{len(self.processes)}", *args)
        self.processes.append(process)
        return process

    @property
    def run(self) -> Path:
        return self.root / self.spec["name"] / "latest"

    def ended(self, patience: float = PATIENCE) -> dict[str, Any]:
        return self.server.event("ended", patience)

    def log(self) -> str:
        path = self.run / "log.txt"
        return path.read_text() if path.exists() else ""

    def logged(self, words: str) -> None:
        until(lambda: words in self.log(), f"{words!r} in the server's log\n{self.server.told()}")

    def rounds(self) -> list[dict[str, Any]]:
        text = (self.run / "metrics/rounds.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def told(self) -> str:
        return "\n".join(f"== {one.name}\n{one.told()}" for one in self.processes) + self.log()


@contextlib.contextmanager
def federation(place: Path, spec: dict[str, Any], *server_args: str) -> Iterator[Federation]:
    """Runs a job's processes, and leaves none behind."""
    made: list[Federation] = []
    try:
        made.append(Federation(place, spec, *server_args))
        yield made[0]
    except AssertionError:
        if made:
            print(made[0].told())
        raise
    finally:
        for one in made:
            for process in one.processes:
                if process.process.poll() is None:
                    process.kill()


def job(sites: int, rounds: int, initial: Path | None = None, **more: Any) -> dict[str, Any]:
    """A job for sites without trainers."""
    spec = {
        "version": 1,
        "name": "stubs",
        "algorithm": {"kind": "fedavg", "num_rounds": rounds},
        "sites": [f"site-{n}" for n in range(1, sites + 1)],
        "min_clients": sites,
        "seed": 7,
        "trainer": {"script": "/none/client.py"},
        **more,
    }
    if initial is not None:
        spec["initial_model"] = str(initial)
    return spec


def model(path: Path, size: int, tensors: int = 8, fill: int = 1) -> Path:
    """A model file of about `size` bytes, whose values `fill` decides."""
    each = size // tensors // 4
    header: dict[str, Any] = {}
    for n in range(tensors):
        offsets = [n * each * 4, (n + 1) * each * 4]
        header[f"w{n:03d}"] = {"dtype": "F32", "shape": [each], "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = b"".join(
        struct.pack("<f", ((n * 2654435761 + fill * 40503) % 65521) / 65521.0) for n in range(65536)
    )
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left, turn = tensors * each * 4, 0
        while left:
            start = turn * 4096 % len(block)
            piece = (block[start:] + block[:start])[:left]
            file.write(piece)
            left -= len(piece)
            turn += 1
    return path


def anonymous(pid: int) -> int:
    """Bytes of a process that no file backs: RssAnon + RssShmem."""
    status = Path(f"/proc/{pid}/status").read_text()
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(rows[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
