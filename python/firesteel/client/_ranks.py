"""How the other ranks of a multi-process trainer follow rank 0.

Only rank 0 is connected to the site. Once `torch.distributed` is initialized,
it leaves what it receives in the group's key-value store, where a rank that
asks finds it: nothing here is a collective operation, so a script may ask on
all ranks or on rank 0 alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from firesteel.errors import ClientError

if TYPE_CHECKING:
    from firesteel._native import ModelFile, Task

# Bytes of a model that go through the store; a larger one lies in a file.
_INLINE = 64 * 1024


def store() -> Any:
    """The key-value store of the group; None without one, or alone in it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    group = torch.distributed
    if not group.is_initialized() or group.get_world_size() < 2:
        return None
    return group.distributed_c10d._get_default_store()


class Publisher:
    """Rank 0's side."""

    def __init__(self) -> None:
        self._number = 0
        self._greeted = False
        self._files: list[str] = []

    def publish(self, task: Task | None, welcome: dict[str, Any]) -> None:
        """Leaves a task, or the end, for the other ranks; nothing without any."""
        shared = store()
        if shared is None:
            return
        if not self._greeted:
            shared.set("firesteel/welcome", json.dumps(welcome))
            self._greeted = True
        shared.set(f"firesteel/{self._number}", json.dumps(self._entry(task, welcome)))
        self._number += 1

    def _entry(self, task: Task | None, welcome: dict[str, Any]) -> dict[str, Any]:
        if task is None:
            self.clean(0)
            return {"end": True}
        entry: dict[str, Any] = {
            "name": task.name,
            "round": task.round,
            "start_round": task.start_round,
            "total_rounds": task.total_rounds,
            "attempt": task.attempt,
            "meta": task.meta,
        }
        if task.model is not None:
            data = memoryview(cast(Any, task.model))
            if len(data) <= _INLINE:
                entry["model"] = base64.b64encode(data).decode("ascii")
            else:
                path = os.path.join(str(welcome["outbox"]), f"ranks-{self._number}.safetensors")
                with open(path, "wb") as file:
                    file.write(data)
                self._files.append(path)
                entry["file"] = path
        # A slow rank may still be about to open the file before the last.
        self.clean(2)
        return entry

    def clean(self, keep: int) -> None:
        """Removes the files of earlier tasks; who has opened one keeps it."""
        while len(self._files) > keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._files.pop(0))


class FollowedTask:
    """A task as another rank sees it."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.name = str(entry["name"])
        self.round = int(entry["round"])
        self.start_round = int(entry["start_round"])
        self.total_rounds = int(entry["total_rounds"])
        self.attempt = int(entry["attempt"])
        self.meta = str(entry["meta"])
        self.model = _model(entry)


class Follower:
    """The side of any other rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._number = 0

    def welcome(self) -> dict[str, Any]:
        """What the site said about the job."""
        facts: dict[str, Any] = json.loads(self._store().get("firesteel/welcome"))
        return facts

    def next(self, timeout: float | None) -> FollowedTask | None:
        """What rank 0 received next; waits for it.

        Raises:
            TimeoutError: when nothing came in time.
        """
        from datetime import timedelta

        shared, key = self._store(), f"firesteel/{self._number}"
        while True:
            # The store's own limit is not ours: a round may take hours.
            slice_s = 60.0 if timeout is None else max(timeout, 0.001)
            try:
                shared.wait([key], timedelta(seconds=slice_s))
                break
            except RuntimeError:
                # torch.distributed.DistStoreError is one.
                if timeout is not None:
                    raise TimeoutError(f"rank 0 received nothing within {timeout} s") from None
        entry = json.loads(shared.get(key))
        if entry.get("end"):
            return None
        self._number += 1
        return FollowedTask(entry)

    def _store(self) -> Any:
        shared = store()
        if shared is None:
            raise ClientError(
                f"flare was asked on rank {self.rank}, which learns from rank 0 through "
                "torch.distributed; that is not initialized",
                hint="call torch.distributed.init_process_group() before, or ask on rank 0 only "
                "and pass the answer on",
                code="misuse",
            )
        return shared


def _model(entry: dict[str, Any]) -> ModelFile | None:
    from firesteel import _native

    if "model" in entry:
        return _native.ModelFile.from_bytes(base64.b64decode(entry["model"]))
    return _native.ModelFile.open(entry["file"]) if "file" in entry else None
