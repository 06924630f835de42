"""A real deployment in processes on this machine."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import weakref
from typing import IO, TYPE_CHECKING, Any

from firesteel import _rest
from firesteel.errors import Error, SpecError
from firesteel.recipe import _env, _fields
from firesteel.recipe._deployed import DeployedEnv, DeployedRun, refuse_resume, refuse_study

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firesteel.recipe._recipe import Job
    from firesteel.recipe._run import Run

# Seconds in which a deployment has to be up: two are usual.
_START = 30.0
# Seconds in which its processes have to be gone: the keeper ends them by force
# after ten.
_STOP = 20.0
_SCHEMES = ("tcp", "grpc", "http")


class PocEnv(DeployedEnv):
    """A server and its sites as processes of their own on this machine.

    They have startup kits, certificates and a port as in production. They are
    children of this program, and end with it, however it ends; `stop` ends them
    before. With several runs, the last `get_result` stops them.

    Args:
        num_clients: how many sites, named `site-1`, `site-2` and so on.
        clients: their names instead.
        gpu_ids: the GPUs that the sites share out, `[0, 1]` say.
        use_he: not supported.
        docker_image: not supported.
        project_conf_path: a project.yml to provision instead of one of our own.
        username: whose kit of that project submits the jobs; by default the first
            admin's that may.
        study: `default`.
        extra: `{"console": "off"}` shows no progress; `{"login_timeout": 30}`
            gives the processes longer to start.
        data: where data lies: `{site: {name: path}}`, or `{name: path}` for all
            sites, in which `{site}` stands for the site's name.
        relays: names of relays, between the server and the sites in turn.
        scheme: how the sites connect: `tcp`, `grpc` or `http` (WebSockets over
            HTTPS).
        workspace: the folder of the kits and of what the processes write; by
            default a temporary one, which goes with them.
        workspace_root: where results are put; `./firesteel-runs`, or the
            environment's `FIRESTEEL_WORKSPACE_ROOT`.

    Raises:
        SpecError: naming the parameter that is wrong.
    """

    def __init__(
        self,
        *,
        num_clients: int = 2,
        clients: Sequence[str] | None = None,
        gpu_ids: Sequence[int] | None = None,
        use_he: bool = False,
        docker_image: str | None = None,
        project_conf_path: str | os.PathLike[str] = "",
        username: str | None = None,
        study: str = "default",
        extra: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        relays: Sequence[str] = (),
        scheme: str = "tcp",
        workspace: str | os.PathLike[str] | None = None,
        workspace_root: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(clients=clients, workspace_root=workspace_root, extra=extra)
        self.num_clients = _fields.whole("num_clients", num_clients, least=1)
        if not self.clients:
            self.clients = [f"site-{number}" for number in range(1, self.num_clients + 1)]
        self.gpu_ids = _gpus(gpu_ids)
        for field, value in (("use_he", use_he), ("docker_image", docker_image)):
            if value:
                raise _fields.refuse(field, value, "nothing: it is not supported")
        project = os.fspath(project_conf_path)
        self.project = os.path.abspath(project) if project else None
        if self.project is not None and not os.path.isfile(self.project):
            raise SpecError(
                f"`project_conf_path`: there is no file {self.project}", field="project_conf_path"
            )
        self.username = username
        refuse_study(study)
        self.data = _env._data_map(data)
        if isinstance(relays, str):
            raise _fields.refuse("relays", relays, "a list of names")
        self.relays = [_fields.name("relays", name) for name in relays]
        self.scheme = _fields.choice("scheme", scheme, _SCHEMES)
        self.workspace = None if workspace is None else os.path.abspath(os.fspath(workspace))
        self._lock = threading.Lock()
        self._keeper: _Keeper | None = None
        self._rest: _rest.Rest | None = None
        self._open: list[DeployedRun] = []

    def sites_for(self, job: Job) -> list[str]:
        """The sites: all of them."""
        return [] if self.project is not None else list(self.clients)

    def deploy(self, job: Job, *, resume: bool, strict: bool) -> Run:
        """Starts the processes unless they run, and submits a job to them; see
        `Recipe.execute`."""
        refuse_resume(resume)
        self._check(job)
        with self._lock:
            rest = self._started()
            try:
                run = self.run_job(rest, job, strict=strict)
            except BaseException:
                if not self._open:
                    self._end(clean_up=True)
                raise
            self._open.append(run)
            return run

    def start(self) -> str:
        """Starts the processes unless they run.

        Returns:
            The startup kit of the admin who submits jobs, for a
            `firesteel.Session` or the command line.
        """
        with self._lock:
            return self._started().kit

    def stop(self, clean_up: bool = False) -> None:
        """Ends the processes.

        Runs that were not waited for are aborted first, and what there is of
        their results is fetched, so that `get_result` works afterwards.

        Args:
            clean_up: also remove the workspace; a temporary one is always removed.
        """
        with self._lock:
            for run in list(self._open):
                with contextlib.suppress(Error):
                    run.close_down()
            self._open.clear()
            self._end(clean_up=clean_up)

    def run_ended(self, run: DeployedRun, *, clean_up: bool) -> None:
        """Stops the processes after the last run's result was fetched."""
        with self._lock:
            if run in self._open:
                self._open.remove(run)
                if not self._open:
                    self._end(clean_up=clean_up)

    def is_gone(self) -> bool:
        """Whether the processes have ended."""
        keeper = self._keeper
        return keeper is None or not keeper.alive()

    def on_interrupt(self, run: DeployedRun) -> str:
        """The processes end with the program."""
        return f"stopping job {run.get_job_id()} and the processes"

    def _check(self, job: Job) -> None:
        for name, source in job.spec["data"].items():
            for site in self.clients if self.project is None else ():
                here = {**self.data.get("", {}), **self.data.get(site, {})}
                if source not in here:
                    raise SpecError(
                        f"{site} has no data named {source!r}, which the job asks for as {name!r}; "
                        f"it has: {', '.join(map(repr, here)) or 'none'}",
                        hint=_fields.did_you_mean(source, here)
                        or f'PocEnv(data={{"{site}": {{"{source}": "path"}}}})',
                        field="data",
                    )

    def _started(self) -> _rest.Rest:
        if self._rest is not None and self._keeper is not None and self._keeper.alive():
            return self._rest
        self._end(clean_up=False)
        keeper = _Keeper(self._options())
        try:
            ready = keeper.ready(float(self.get_extra_prop("login_timeout", _START)))
            rest = _rest.Rest(ready["admin"])
        except BaseException:
            keeper.end()
            raise
        self._keeper, self._rest = keeper, rest
        _LIVE.add(self)
        return rest

    def _end(self, *, clean_up: bool) -> None:
        rest, self._rest = self._rest, None
        keeper, self._keeper = self._keeper, None
        if rest is not None:
            rest.close()
        if keeper is not None:
            keeper.end()
        if clean_up and self.workspace is not None and keeper is not None:
            _env._remove(self.workspace)
        _LIVE.discard(self)

    def _at_exit(self) -> None:
        """A program that ends without waiting for its runs: they end first, as with
        `SimEnv`, unless it ends because something went wrong."""
        failed = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        for run in [] if failed else list(self._open):
            try:
                run.get_result()
            except Error as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                break
        self.stop()

    def _options(self) -> dict[str, Any]:
        sites = {}
        for number, site in enumerate(self.clients):
            data = {
                name: path.replace("{site}", site)
                for name, path in {**self.data.get("", {}), **self.data.get(site, {})}.items()
            }
            sites[site] = {
                "data": {name: _env._place(path) for name, path in data.items()},
                "gpus": self.gpu_ids[number :: len(self.clients)],
            }
        return {
            "workspace": self.workspace,
            "project": self.project,
            "sites": sites,
            "relays": self.relays,
            "scheme": self.scheme,
            "username": self.username,
            "python": sys.executable,
            "variables": _search_path(),
        }


class _Keeper:
    """The process that keeps the others: it starts them, and ends them when it is
    told to, or when we are gone."""

    def __init__(self, options: dict[str, Any]) -> None:
        # Who simulates does not wait for it.
        import subprocess

        self._lines: list[str] = []
        self._told = threading.Condition()
        self._process = subprocess.Popen(
            [_env.binary(), "poc", "keep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Of its own: Ctrl-C at the terminal is for the program, which ends it.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._life: IO[bytes] = self._process.stdin
        try:
            self._life.write(json.dumps(options).encode() + b"\n")
            self._life.flush()
        except BrokenPipeError:
            pass  # It says why on its way out.
        reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="firesteel-poc", daemon=True
        )
        reader.start()

    def ready(self, patience: float) -> dict[str, Any]:
        """Waits until all processes are up; what the keeper says of them.

        Raises:
            Error: they do not come up, and why.
        """
        with self._told:
            if not self._told.wait_for(lambda: bool(self._lines), patience):
                raise Error(
                    f"the processes were not up after {patience:.0f} s",
                    hint='PocEnv(extra={"login_timeout": 120}) waits longer',
                )
            line = self._lines[0]
        told: dict[str, Any] = json.loads(line or '{"message": "the keeper of the processes ended"}')
        if told.get("event") != "ready":
            raise Error(str(told.get("message")), hint=str(told.get("hint") or ""))
        return told

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Ends all of them, and waits for it."""
        from subprocess import TimeoutExpired

        with contextlib.suppress(BrokenPipeError):
            self._life.close()
        try:
            self._process.wait(_STOP)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self._say(line.decode("utf-8", "replace"))
        self._say("")

    def _say(self, line: str) -> None:
        with self._told:
            self._lines.append(line)
            self._told.notify_all()


_LIVE: weakref.WeakSet[PocEnv] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for env in list(_LIVE):
        env._at_exit()


def _search_path() -> dict[str, str]:
    """Where trainers find packages: where we do, this very one included. A site
    hands on nothing of its own environment."""
    earlier = os.environ.get("PYTHONPATH")
    return {**({"PYTHONPATH": earlier} if earlier else {}), **_env._trainers_path()}


def _gpus(given: Any) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise _fields.refuse("gpu_ids", given, "a list of numbers, [0, 1] say")
    return [str(_fields.whole("gpu_ids", number, least=0)) for number in given]
