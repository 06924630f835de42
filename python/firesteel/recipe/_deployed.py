"""Jobs that run at a server and its sites: submitting, watching, fetching results."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from firesteel import _rest
from firesteel.errors import NoConnection, SpecError
from firesteel.recipe import _bundle, _fields, _run
from firesteel.recipe._env import ROOT_VARIABLE, ExecEnv
from firesteel.recipe._run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firesteel.recipe._recipe import Job

# Seconds that one question for events waits at the server: after them a pressed
# Ctrl-C is noticed.
_SLICE = 1
# Seconds that a server which was there may be away while a run is waited for:
# as long as restarting its machine takes.
_AWAY = 300.0
# Seconds for the sites to confirm that a job was aborted.
_CLOSE = 15.0
_ENDED = ("completed", "completed_with_losses", "failed", "aborted", "refused")


class DeployedEnv(ExecEnv):
    """What environments with a server have in common."""

    def __init__(
        self,
        *,
        clients: Sequence[str] | None,
        workspace_root: str | os.PathLike[str] | None,
        extra: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(extra)
        from firesteel.recipe import _env

        self.clients = _env._client_names(clients, 0)
        root = workspace_root if workspace_root is not None else os.environ.get(ROOT_VARIABLE)
        self.workspace_root = os.path.abspath(os.fspath(root) if root else "firesteel-runs")

    def sites_for(self, job: Job) -> list[str]:
        """The sites that were named; none: all that are connected."""
        return list(self.clients)

    def run_job(self, rest: _rest.Rest, job: Job, *, strict: bool) -> DeployedRun:
        """Submits a job, and returns its run."""
        import shutil
        import tempfile

        os.makedirs(self.workspace_root, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".bundle-", dir=self.workspace_root)
        try:
            bundle = os.path.join(folder, "bundle.tar")
            make_bundle(rest.kit, job, self.sites_for(job), bundle)
            taken = rest.upload("/v1/jobs", bundle)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return DeployedRun(self, rest, str(taken["id"]), job, strict=strict)

    def run_ended(self, run: DeployedRun, *, clean_up: bool) -> None:
        """Called when a run's result is here, or it needs the server no more."""

    def is_gone(self) -> bool:
        """Whether the server is known not to come back."""
        return False

    def on_interrupt(self, run: DeployedRun) -> str:
        """What becomes of a job that is not waited for any more."""
        return f"not waiting any more; the job goes on: firesteel job watch {run.get_job_id()}"


def make_bundle(kit: str, job: Job, sites: Sequence[str], out: str) -> None:
    """Writes a job's signed bundle.

    Raises:
        SpecError: naming the parameter that is wrong.
    """
    from firesteel import _native

    spec, code = spec_for(job, sites)
    initial = None
    if job.make_params is not None:
        from firesteel._models import save_model

        initial = save_model(
            os.path.join(os.path.dirname(out), "initial.safetensors"), job.make_params()
        )
        spec["initial_model"] = "models/initial.safetensors"
    text = json.dumps(spec, ensure_ascii=False)
    _native.make_bundle(kit, text, sorted(code.files.items()), initial, out)


def spec_for(job: Job, sites: Sequence[str]) -> tuple[dict[str, Any], _bundle.Code]:
    """A job's spec as it is submitted, and the code that goes with it."""
    spec: dict[str, Any] = json.loads(json.dumps(job.spec))
    spec["sites"] = list(sites)
    spec["site"] = {site: dict(own) for site, own in job.site_config.items()}
    for site in spec["site"]:
        if sites and site not in sites:
            raise SpecError(
                f"`site_config` names {site!r}, which is not a site of this job",
                hint=_fields.did_you_mean(site, sites) or f"the sites are {', '.join(sites)}",
                field="site_config",
            )
    if sites and spec["min_clients"] > len(sites):
        raise SpecError(
            f"`min_clients` is {spec['min_clients']}, but there are {len(sites)} sites",
            hint="name more sites, or lower `min_clients`",
            field="min_clients",
        )
    for name, source in spec["data"].items():
        if "://" in source or source.startswith(("/", "./", "../", "~")):
            raise SpecError(
                f"`data[{name!r}]` is {source!r}, which is a place; a site's owner names its data",
                hint="name it in the site's site.toml (or `PocEnv(data=…)`), and ask for the name",
                field="data",
            )
    for name, field in (("trainer_start", "start_s"), ("stop_grace", "stop_grace_s")):
        if name in job.durations:
            spec["trainer"][field] = job.durations[name]
    if "PYTHONBREAKPOINT" not in os.environ:
        # Nobody sits in front of a supervised trainer.
        spec["trainer"].setdefault("env", {}).setdefault(
            "PYTHONBREAKPOINT", "firesteel._breakpoint.skip"
        )
    return spec, _bundle.take(job, spec)


class DeployedRun(Run):
    """A job that a server runs.

    Everything that needs the result (`get_result`, `model_path`, `model`,
    `metrics`) waits for the job's end.
    """

    def __init__(
        self, env: DeployedEnv, rest: _rest.Rest, id: str, job: Job, *, strict: bool
    ) -> None:
        self._env = env
        self._rest = rest
        self._id = id
        self._name = str(job.spec["name"])
        self._save_as = dict(job.save_as)
        self._strict = strict
        self._shown = env.get_extra_prop("console", "auto") != "off"
        self._detail: dict[str, Any] = {}
        self._folder: str | None = None
        self._over = False
        # Held while the result is waited for and fetched; what looks at the job
        # alone does without.
        self._turn = threading.Lock()
        self._say(f"job {self._name} is {id} at the server")

    @property
    def failures(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """One dict per site whose newest task failed, as far as is known now."""
        self._look()
        return [_failure(one) for one in self._detail.get("failures") or ()]

    def get_job_id(self) -> str:
        """The job's id, made by the server."""
        return self._id

    def get_status(self) -> str:
        """`completed`, `completed with 4 of 5 sites`, `failed`, `aborted`,
        `refused`, or what it does now."""
        self._look()
        return _status(self._detail)

    def get_result(self, timeout: float = 0.0, clean_up: bool = True) -> str | None:
        """Waits for the job's end, and returns the folder with models, metrics and logs.

        The first call fetches it; further ones return the same folder, also when
        the environment was stopped and cleaned in the meantime.

        Args:
            timeout: seconds to wait at most; 0: until the job ends.
            clean_up: a `PocEnv` that has no further run removes its folder, after
                it was stopped.

        Returns:
            The folder; None when the time ran out, and the job goes on.

        Raises:
            JobFailed: it ended without a result that counts. What there is of it
                was fetched all the same: the error names the folder.
            Incomplete: with `strict`, it completed without all its sites.
        """
        with self._turn:
            if not self._over:
                try:
                    if not self._wait(float(timeout)):
                        return None
                    self._fetch()
                except KeyboardInterrupt:
                    self._say(self._env.on_interrupt(self))
                    raise
                self._over = True
                self._env.run_ended(self, clean_up=clean_up)
        _run.check(self, self._outcome_of(), strict=self._strict)
        return self._folder

    def abort(self) -> None:
        """Ends the job, whatever it does; a job that has ended is left as it is."""
        if not self._ended():
            self._rest.ask("POST", _rest.job(self._id, "/abort"), {"reason": "Run.abort"})
            self._look()

    @property
    def folder(self) -> str | None:
        """Where the result was put; None before `get_result` has fetched it."""
        return self._folder

    def _look(self) -> None:
        if self._over or self._ended():
            return
        detail = self._rest.ask("GET", _rest.job(self._id))
        if not self._over:
            self._detail = detail

    def _ended(self) -> bool:
        return self._detail.get("state") in _ENDED

    def _wait(self, timeout: float) -> bool:
        """Follows the job's events; whether it has ended."""
        until = time.monotonic() + timeout if timeout > 0 else None
        away_since: float | None = None
        after = 0
        while True:
            wait = _SLICE if until is None else max(0, min(_SLICE, int(until - time.monotonic())))
            try:
                told = self._rest.ask(
                    "GET", _rest.job(self._id, "/events"), after=after, wait=wait
                )
                away_since = None
            except NoConnection:
                # A server that is started anew goes on with its jobs.
                away_since = away_since or time.monotonic()
                if self._env.is_gone() or time.monotonic() - away_since > _AWAY:
                    raise
                time.sleep(0.5)
                continue
            for event in told["events"]:
                self._show(event)
            after = told["next"] if "next" in told else after
            if told.get("ended"):
                self._look()
                return True
            if until is not None and time.monotonic() >= until:
                return False

    def _fetch(self) -> None:
        """Copies the run's files here."""
        root = os.path.join(self._env.workspace_root, self._name)
        folder = os.path.join(root, self._id)
        files = self._rest.ask("GET", _rest.job(self._id, "/files"))["files"]
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _rest.fetch(self._rest, self._id, files, folder)
        _point(os.path.join(root, "latest"), self._id)
        self._folder = folder
        if _status(self._detail).startswith("completed"):
            done = Run({"run_dir": folder, "status": "completed"})
            _run.save_further(done, self._save_as)

    def _outcome_of(self) -> dict[str, Any]:
        status = _status(self._detail)
        said = str(self._detail.get("status") or "")
        cause = said.removeprefix(f"{status}: ")
        return {
            "job_id": self._id,
            "status": status,
            "run_dir": self._folder,
            "cause": "" if cause == status or status.startswith("completed") else cause,
        }

    def _say(self, line: str) -> None:
        if self._shown:
            print(line, file=sys.stderr, flush=True)

    def _show(self, event: Mapping[str, Any]) -> None:
        kind = event.get("kind")
        if kind == "round_done":
            numbers = ", ".join(f"{k} {v:.4f}" for k, v in (event.get("metrics") or {}).items())
            self._say(
                f"round {event['round'] + 1}/{event['rounds']}: {event['contributed']} of "
                f"{event['sites']} sites, {event['seconds']:.1f}s" + (numbers and f", {numbers}")
            )
        elif kind == "failure":
            failure = event.get("failure") or {}
            self._say(f"{failure.get('site') or 'the server'}: {failure.get('message', '')}")
        elif kind == "note":
            self._say(str(event.get("message", "")))
        elif kind == "state" and event.get("state") in ("queued", "refused"):
            self._say(f"job {self._name}: {event.get('status') or event.get('state')}")

    def close_down(self) -> None:
        """Ends the job and fetches what there is of it, before its server goes."""
        with self._turn:
            if self._over:
                return
            self.abort()
            self._wait(_CLOSE)
            self._fetch()
            self._over = True


def _status(detail: Mapping[str, Any]) -> str:
    state = str(detail.get("state") or "")
    if state == "completed_with_losses":
        return str(detail.get("status") or "completed without all sites")
    if state in _ENDED:
        return state
    return str(detail.get("status") or state)


def _failure(told: Mapping[str, Any]) -> dict[str, Any]:
    """A failure with the keys that those of a simulation have."""
    return {
        "site": told.get("site"),
        "round": told.get("round"),
        "code": told.get("code") or "",
        "phase": told.get("phase") or "",
        "message": told.get("message") or "",
        "hint": told.get("hint") or "",
        "traceback": told.get("traceback"),
        "log_tail": list(told.get("log_tail") or ()),
    }


def _point(link: str, target: str) -> None:
    """Makes a link point at the newest result; a convenience, and no more."""
    aside = f"{link}.{os.getpid()}"
    try:
        os.symlink(target, aside)
        os.replace(aside, link)
    except OSError as problem:
        print(f"warning: {link} was not made: {problem}", file=sys.stderr)


def refuse_resume(resume: bool) -> None:
    """A server goes on with its jobs by itself."""
    if resume:
        raise _fields.refuse(
            "resume", True, "False: a server goes on with its jobs by itself",
            "submit the job again, or `firesteel job clone` it",
        )  # fmt: skip


def refuse_study(study: str) -> None:
    """There is one study so far."""
    if study != "default":
        raise _fields.refuse("study", study, "'default', the only study that a server has")
