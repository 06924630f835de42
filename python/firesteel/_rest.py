"""Requests to a server's admin interface, and its refusals as exceptions."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from firesteel import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from firesteel._native import Admin

_REFUSALS: dict[str, type[errors.SessionError]] = {
    "invalid": errors.InvalidArgumentError,
    "unauthenticated": errors.SessionExpired,
    "login-refused": errors.AuthenticationError,
    "forbidden": errors.AuthorizationError,
    "job-not-found": errors.JobNotFound,
    "site-not-found": errors.InvalidTarget,
    "key-taken": errors.SubmitTokenConflict,
    "key-deleted": errors.SubmitTokenJobDeleted,
    "bundle-refused": errors.InvalidJobDefinition,
    "too-large": errors.InvalidArgumentError,
    "site-away": errors.NoReply,
    "site-silent": errors.NoReply,
    "unavailable": errors.NoConnection,
    "internal": errors.InternalError,
}


class Rest:
    """One session with a server, for any number of threads.

    Args:
        kit: the folder of an admin's startup kit.
    """

    def __init__(self, kit: str | os.PathLike[str]) -> None:
        from firesteel import _native

        self.kit = os.path.abspath(os.fspath(kit))
        if not os.path.isdir(self.kit):
            raise errors.KitError(
                f"there is no startup kit in {self.kit}",
                hint="`firesteel provision project.yml` makes the kits of a project",
            )
        self._admin: Admin | None = _native.Admin(self.kit)
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request; what its JSON answer holds.

        Raises:
            SessionError: the server refuses it, or cannot be reached.
        """
        sent = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        status, answer = self._there().request(method, _with(path, query), sent)
        return _read(status, answer)

    def text(self, path: str, **query: Any) -> str:
        """What a path holds, as text."""
        status, answer = self._there().request("GET", _with(path, query), None)
        if status >= 300:
            _read(status, answer)
        return answer.decode("utf-8", "replace")

    def upload(self, path: str, file: str, key: str | None = None) -> Any:
        """Sends a file, and returns what the JSON answer holds."""
        return _read(*self._there().upload(path, file, key))

    def download(self, path: str, file: str) -> None:
        """Fetches a file, going on where an earlier try was cut."""
        self._there().download(path, file)

    def close(self) -> None:
        """Ends the session; a second time does nothing."""
        with self._lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _there(self) -> Admin:
        admin = self._admin
        if admin is None:
            raise errors.SessionClosed("the session was closed", hint="make a new one")
        return admin


def job(id: str, rest: str = "") -> str:
    """The path of a job, or of something of it."""
    return f"/v1/jobs/{quote(id, safe='')}{quote(rest)}"


def site(name: str, rest: str = "") -> str:
    """The path of a site, or of something of it."""
    return f"/v1/sites/{quote(name, safe='')}{quote(rest)}"


def retried(call: Callable[[], Any], seconds: float, pause: float = 0.05) -> Any:
    """What a call returns, tried again while the server cannot be reached.

    Raises:
        NoConnection: it could not be reached all that time.
    """
    import time

    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except errors.NoConnection:
            if time.monotonic() >= until:
                raise
        time.sleep(pause)


def _with(path: str, query: dict[str, Any]) -> str:
    given = {
        key: ("true" if value is True else "false" if value is False else value)
        for key, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(given)}" if given else path


def _read(status: int, answer: bytes) -> Any:
    try:
        value = json.loads(answer) if answer else None
    except ValueError:
        value = None
    if status < 300:
        return value
    raise refusal(status, value if isinstance(value, dict) else {})


def refusal(status: int, problem: dict[str, Any]) -> errors.SessionError:
    """The exception for an answer that is no success."""
    code = str(problem.get("code") or "")
    message = str(problem.get("message") or f"the server answered with status {status}")
    hint = str(problem.get("hint") or "")
    kind = _REFUSALS.get(code, errors.CommandError)
    field = problem.get("field")
    if field and issubclass(kind, errors.InvalidArgumentError):
        return kind(message, hint=hint, code=code, field=str(field))
    return kind(message, hint=hint, code=code)


def fetch(
    rest: Rest, id: str, files: list[dict[str, Any]], folder: str, *, everything: bool = False
) -> None:
    """Fetches a job's files into a folder, and leaves those that are there."""
    for file in files:
        path = str(file["path"])
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts):
            continue
        inside = parts if everything else placed(parts)
        if inside is None:
            continue
        target = os.path.join(folder, *inside)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not (os.path.isfile(target) and os.path.getsize(target) == file["bytes"]):
            rest.download(job(id, f"/files/{path}"), target)


def placed(parts: list[str]) -> list[str] | None:
    """Where a job's file lies in its result; None: it stays at the server.

    What a server needs to go on, and what it passes on, is no result.
    """
    kept = parts[0] not in ("state", "objects", "lock") and not parts[-1].startswith(".")
    return parts if kept else None
