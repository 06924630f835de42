"""What can go wrong, as exceptions that say what to do about it.

`str(error)` is the sentence, and under it `hint: …` where there is something
useful to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firesteel.recipe import Run

__all__ = [
    "ClientError",
    "Error",
    "Incomplete",
    "JobAborted",
    "JobFailed",
    "ModelError",
    "SpecError",
    "StoreError",
    "StreamError",
    "TreeError",
]


class Error(Exception):
    """Anything that Firesteel reports.

    >>> print(Error("the disk is full", hint="free 3 GB in /data"))
    the disk is full
    hint: free 3 GB in /data

    Attributes:
        message: what went wrong.
        hint: what to do about it; empty when there is nothing useful to say.
        code: the stable code of the kind of failure, `disk-full` say.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their positional arguments, which would lose
        # the rest when one crosses a process pool.
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(kind: type[Error], message: str, fields: dict[str, Any]) -> Error:
    error = kind.__new__(kind, message)
    error.__dict__.update(fields)
    return error


class SpecError(Error, ValueError):
    """A job, or an environment, that cannot work as it was described.

    Attributes:
        field: the parameter that is wrong, `min_clients` say.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.field = field


class TreeError(Error, TypeError):
    """Params that hold something which cannot be sent.

    Attributes:
        path: where it lies, `params["layers"][3]` say.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "", path: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.path = path


class ModelError(Error, ValueError):
    """Bytes that are not a model, or params that do not make one."""


class ClientError(Error, RuntimeError):
    """The client API was used in a way that cannot work."""


class StoreError(Error, OSError):
    """A file or directory that cannot be read or written."""


class StreamError(Error, RuntimeError):
    """Something that cannot be offered, or not be fetched.

    `code` says which: `not-offered`, `bad-name`, `no-file`, `changed`,
    `bad-offer`, `too-many`, `unreachable`, `malformed` or `misuse`.
    """


class JobFailed(Error):
    """A job ended without a result that counts.

    Attributes:
        status: the job's last state, `failed` say.
        failures: one dict per failed site: `site`, `round`, `code`, `phase`,
            `message`, `hint`, `traceback`, `log_tail`.
        run: the run, when it got as far as having one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str = "",
        status: str = "failed",
        failures: Sequence[Mapping[str, Any]] = (),
        run: Run | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.status = status
        self.failures = [dict(failure) for failure in failures]
        self.run = run


class JobAborted(JobFailed):
    """A job was ended by a person or a program before it was done."""


class Incomplete(JobFailed):
    """A job completed without all of its sites, and `strict=True` was asked for.

    Uncaught, it ends the program with exit code 3 instead of Python's 1, so
    that a script can tell "some sites failed" from "it did not work".
    """
