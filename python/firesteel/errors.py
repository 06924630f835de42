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
    "AuthenticationError",
    "AuthorizationError",
    "ClientError",
    "ClientsStillRunning",
    "CommandError",
    "Error",
    "Incomplete",
    "InternalError",
    "InvalidArgumentError",
    "InvalidJobDefinition",
    "InvalidTarget",
    "JobAborted",
    "JobFailed",
    "JobNotDone",
    "JobNotFound",
    "JobNotRunning",
    "JobTimeout",
    "KitError",
    "ModelError",
    "NoClientsAvailable",
    "NoConnection",
    "NoReply",
    "SessionClosed",
    "SessionError",
    "SessionExpired",
    "SpecError",
    "StoreError",
    "StreamError",
    "SubmitTokenConflict",
    "SubmitTokenJobDeleted",
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


class KitError(Error, ValueError):
    """A startup kit that is not there, is not whole, or may be read by others."""


class SessionError(Error):
    """What a session with a server reports."""


class NoConnection(SessionError, ConnectionError):
    """The server cannot be reached, or does not take requests."""


class SessionClosed(SessionError):
    """The session was closed before."""


class SessionExpired(SessionError):
    """The server does not know the session any more."""


class AuthenticationError(SessionError):
    """The server does not take this kit for a member of its project.

    Attributes:
        auth_code: the server's word for why.
    """

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", auth_code: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.auth_code = auth_code or code


class AuthorizationError(SessionError, PermissionError):
    """The kit's role does not allow it."""


class InvalidArgumentError(SessionError, ValueError):
    """A parameter that the server does not take.

    Attributes:
        field: which one, where the server says.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.field = field


class InvalidJobDefinition(InvalidArgumentError):
    """A job, or its bundle, that the server does not take."""


class SubmitTokenConflict(SessionError):
    """The submit token was used for another job.

    Attributes:
        existing_job_id: that job, where the server says.
    """

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", existing_job_id: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.existing_job_id = existing_job_id


class SubmitTokenJobDeleted(SessionError):
    """The job that was submitted with this token was deleted."""


class JobNotFound(SessionError, LookupError):
    """There is no such job, or it is not yours to see."""


class JobNotRunning(SessionError):
    """The job has ended, or has not begun."""


class JobNotDone(SessionError):
    """The job goes on."""


class JobTimeout(SessionError, TimeoutError):
    """The job was not done in the time that was given."""


class InvalidTarget(SessionError, LookupError):
    """There is no such site."""


class NoClientsAvailable(SessionError):
    """No site is connected."""


class ClientsStillRunning(SessionError):
    """Sites have not stopped yet."""


class NoReply(SessionError, TimeoutError):
    """A site is away, or did not answer in time."""


class InternalError(SessionError):
    """A bug of the server."""


class CommandError(SessionError):
    """Anything else that the server refuses.

    Attributes:
        error_code: the server's word for it.
        exit_code: what a command line program would end with.
    """

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", exit_code: int = 1
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.error_code = code
        self.exit_code = exit_code
