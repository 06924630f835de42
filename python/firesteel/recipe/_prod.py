"""A federation that runs already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firesteel import _rest
from firesteel.errors import SpecError
from firesteel.recipe import _fields
from firesteel.recipe._deployed import DeployedEnv, refuse_resume, refuse_study

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from firesteel.recipe._recipe import Job
    from firesteel.recipe._run import Run


class ProdEnv(DeployedEnv):
    """A server with its sites, reached with the startup kit of an admin.

    Args:
        startup_kit_location: the kit's folder.
        login_timeout: seconds within which the server has to be reached.
        username: the kit's name, to be sure that it is the one that is meant.
        study: `default`.
        clients: the sites that the job runs at; by default all that are connected.
        workspace_root: where results are put; `./firesteel-runs`, or the
            environment's `FIRESTEEL_WORKSPACE_ROOT`.
        extra: `{"console": "off"}` shows no progress.

    Raises:
        SpecError: naming the parameter that is wrong.
    """

    def __init__(
        self,
        startup_kit_location: str | os.PathLike[str],
        login_timeout: float = 5.0,
        username: str | None = None,
        study: str = "default",
        extra: Mapping[str, Any] | None = None,
        *,
        clients: Sequence[str] | None = None,
        workspace_root: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(clients=clients, workspace_root=workspace_root, extra=extra)
        import os

        given = os.fspath(startup_kit_location)
        self.startup_kit_location = os.path.abspath(
            _fields.text("startup_kit_location", given, expected="the folder of a startup kit")
        )
        if not os.path.isdir(self.startup_kit_location):
            raise SpecError(
                f"`startup_kit_location`: there is no folder {self.startup_kit_location}",
                hint="`firesteel provision project.yml` makes a kit for each admin",
                field="startup_kit_location",
            )
        self.login_timeout = _fields.seconds("login_timeout", login_timeout)
        if username is not None:
            _check_owner(self.startup_kit_location, username)
        refuse_study(study)
        self._rest: _rest.Rest | None = None

    def deploy(self, job: Job, *, resume: bool, strict: bool) -> Run:
        """Submits a job; see `Recipe.execute`."""
        refuse_resume(resume)
        return self.run_job(self._session(), job, strict=strict)

    def close(self) -> None:
        """Ends the session with the server. Its jobs go on."""
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.close()

    def _session(self) -> _rest.Rest:
        if self._rest is None:
            rest = _rest.Rest(self.startup_kit_location)
            try:
                _rest.retried(lambda: rest.ask("GET", "/v1/status"), self.login_timeout)
            except BaseException:
                rest.close()
                raise
            self._rest = rest
        return self._rest


def _check_owner(folder: str, username: str) -> None:
    """A kit is one person's: the name is in it."""
    import os
    import tomllib

    try:
        with open(os.path.join(folder, "kit.toml"), "rb") as file:
            owner = tomllib.load(file).get("name")
    except (OSError, tomllib.TOMLDecodeError):
        # What is wrong with it is said when the kit is opened.
        return
    if owner != username:
        raise SpecError(
            f"`username` is {username!r}, but {folder} is the kit of {owner!r}",
            hint="name that person's kit, or leave `username` out",
            field="username",
        )
