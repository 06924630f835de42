"""A session with a server: jobs, sites, files and logs, from a program.

    from firesteel import Session

    with Session("kits/lead@hospital.org") as session:
        job = session.submit_job("jobs/digits")
        session.wait_for_job(job)
        print(session.download_job_result(job))

The methods are those that users of NVIDIA FLARE's API know; what they return are
the dicts of the REST interface (docs/reference), with FLARE's keys beside ours.
"""

from __future__ import annotations

import enum
import os
import time
from typing import TYPE_CHECKING, Any

from firesteel import _rest, errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ClientInfo",
    "JobInfo",
    "MonitorReturnCode",
    "ServerInfo",
    "Session",
    "SystemInfo",
    "TargetType",
    "basic_cb_with_print",
    "new_secure_session",
]

_ENDED = ("completed", "completed_with_losses", "failed", "aborted", "refused")
# Seconds that one question for events waits at the server.
_SLICE = 1


class TargetType(str, enum.Enum):
    """Who is asked."""

    ALL = "all"
    SERVER = "server"
    CLIENT = "client"

    def __str__(self) -> str:
        return self.value


class MonitorReturnCode(enum.IntEnum):
    """Why `monitor_job` returned."""

    JOB_FINISHED = 0
    TIMEOUT = 1
    ENDED_BY_CB = 2


class ServerInfo:
    """The server.

    Attributes:
        status: `started`.
        start_time: when, in the form of ISO 8601.
    """

    def __init__(self, status: str, start_time: str) -> None:
        self.status = status
        self.start_time = start_time

    def __repr__(self) -> str:
        return f"ServerInfo(status={self.status!r}, start_time={self.start_time!r})"


class ClientInfo:
    """A site.

    Attributes:
        name: its name.
        last_connect_time: when it connected last, in the form of ISO 8601.
    """

    def __init__(self, name: str, last_connect_time: str) -> None:
        self.name = name
        self.last_connect_time = last_connect_time

    def __repr__(self) -> str:
        return f"ClientInfo(name={self.name!r}, last_connect_time={self.last_connect_time!r})"


class JobInfo:
    """A job that has not ended.

    Attributes:
        job_id: its id.
        app_name: its name.
    """

    def __init__(self, job_id: str, app_name: str) -> None:
        self.job_id = job_id
        self.app_name = app_name

    def __repr__(self) -> str:
        return f"JobInfo(job_id={self.job_id!r}, app_name={self.app_name!r})"


class SystemInfo:
    """The federation.

    Attributes:
        server_info: the server.
        client_info: the sites that are connected.
        job_info: the jobs that have not ended.
    """

    def __init__(
        self, server_info: ServerInfo, client_info: list[ClientInfo], job_info: list[JobInfo]
    ) -> None:
        self.server_info = server_info
        self.client_info = client_info
        self.job_info = job_info

    def __repr__(self) -> str:
        return f"SystemInfo({self.server_info!r}, {self.client_info!r}, {self.job_info!r})"


class Session:
    """A session with a server, for any number of threads.

    Args:
        startup_kit_location: the folder of an admin's startup kit.
        timeout: seconds within which the server has to be reached at first.

    Raises:
        KitError: the kit is not whole.
        NoConnection: the server cannot be reached.
        AuthenticationError: the server does not know the kit.
    """

    def __init__(
        self, startup_kit_location: str | os.PathLike[str], timeout: float = 10.0
    ) -> None:
        self._rest = _rest.Rest(startup_kit_location)
        self._timeout: float | None = None
        try:
            self.try_connect(timeout)
        except BaseException:
            self._rest.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def try_connect(self, timeout: float) -> None:
        """Reaches the server within so many seconds.

        Raises:
            NoConnection: it cannot be reached.
        """
        _rest.retried(lambda: self._rest.ask("GET", "/v1/status"), timeout)

    def close(self) -> None:
        """Ends the session; jobs go on."""
        self._rest.close()

    # Jobs

    def submit_job(
        self, path: str | os.PathLike[str], submit_token: str | None = None
    ) -> str:
        """Submits a job.

        Args:
            path: a folder that `Recipe.export` wrote, or a bundle.
            submit_token: any word: a second submission with it gives the first
                one's job, so that one whose answer was lost can be sent again.

        Returns:
            The job's id.

        Raises:
            InvalidJobDefinition: the job cannot work as it is described.
            SubmitTokenConflict: the token was used for another job.
        """
        import shutil
        import tempfile

        given = os.path.abspath(os.fspath(path))
        if os.path.isfile(given):
            return str(self._rest.upload("/v1/jobs", given, submit_token)["id"])
        folder = tempfile.mkdtemp(prefix="firesteel-bundle-")
        try:
            bundle = os.path.join(folder, "bundle.tar")
            _bundle_folder(self._rest.kit, given, bundle, submit_token)
            return str(self._rest.upload("/v1/jobs", bundle, submit_token)["id"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clone_job(self, job_id: str) -> str:
        """Submits a job again; the new one's id."""
        return str(self._rest.ask("POST", _rest.job(job_id, "/clone"))["id"])

    def get_job_meta(self, job_id: str) -> dict[str, Any]:
        """Everything about a job."""
        return _meta(self._rest.ask("GET", _rest.job(job_id)))

    def get_job_status(self, job_id: str) -> str:
        """What a job does: `running`, `completed`, `completed with 4 of 5 sites` …"""
        return str(self.get_job_meta(job_id)["status"])

    def list_jobs(
        self,
        detailed: bool = False,
        limit: int | None = None,
        id_prefix: str | None = None,
        name_prefix: str | None = None,
        reverse: bool = False,
        submit_token: str | None = None,
    ) -> list[dict[str, Any]]:
        """The jobs that fit, oldest first unless `reverse`; with `detailed`, each as
        `get_job_meta` has it."""
        found = self._rest.ask(
            "GET", "/v1/jobs", limit=limit, id=id_prefix, name=name_prefix,
            reverse=reverse or None, key=submit_token,
        )["jobs"]  # fmt: skip
        if detailed:
            return [self.get_job_meta(job["id"]) for job in found]
        return [_meta(job) for job in found]

    def abort_job(self, job_id: str) -> None:
        """Ends a job, whatever it does; one that has ended is left as it is."""
        self._rest.ask("POST", _rest.job(job_id, "/abort"), {"reason": ""})

    def delete_job(self, job_id: str) -> None:
        """Removes a job that has ended, with all that it left.

        Raises:
            JobNotDone: it goes on; abort it first.
        """
        try:
            self._rest.ask("DELETE", _rest.job(job_id))
        except errors.CommandError as refused:
            if refused.error_code != "wrong-state":
                raise
            raise errors.JobNotDone(
                refused.message, hint=refused.hint, code=refused.error_code
            ) from None

    def list_job_components(self, job_id: str) -> list[str]:
        """The files of a job at the server, by path."""
        files = self._rest.ask("GET", _rest.job(job_id, "/files"))["files"]
        return [str(file["path"]) for file in files]

    def download_job_components(
        self, job_id: str, destination: str | os.PathLike[str] | None = None
    ) -> str:
        """Fetches all files of a job, those included that only a server uses; the folder
        they are in."""
        return self._download(job_id, destination, everything=True)

    def download_job_result(
        self, job_id: str, destination: str | os.PathLike[str] | None = None
    ) -> str:
        """Fetches models, metrics and logs of a job, as far as they are there.

        A download that was cut goes on where it was when this is called again.

        Args:
            job_id: the job.
            destination: a folder that gets one of the job's id; by default the
                working directory.

        Returns:
            The folder.
        """
        return self._download(job_id, destination, everything=False)

    def _download(
        self, job_id: str, destination: str | os.PathLike[str] | None, *, everything: bool
    ) -> str:
        root = os.path.abspath(os.fspath(destination) if destination is not None else ".")
        folder = os.path.join(root, job_id)
        files = self._rest.ask("GET", _rest.job(job_id, "/files"))["files"]
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _rest.fetch(self._rest, job_id, files, folder, everything=everything)
        return folder

    def monitor_job(
        self,
        job_id: str,
        timeout: float = 0.0,
        poll_interval: float = 2.0,
        cb: Callable[..., bool] | None = None,
        *cb_args: Any,
        **cb_kwargs: Any,
    ) -> MonitorReturnCode:
        """Waits until a job has ended.

        Args:
            job_id: the job.
            timeout: seconds to wait at most; 0: until it ends.
            poll_interval: seconds between two calls of `cb`.
            cb: called as `cb(session, job_id, meta, *cb_args, **cb_kwargs)`; ends
                the waiting by returning False.
        """
        return self.monitor_job_and_return_job_meta(
            job_id, timeout, poll_interval, cb, *cb_args, **cb_kwargs
        )[0]

    def monitor_job_and_return_job_meta(
        self,
        job_id: str,
        timeout: float = 0.0,
        poll_interval: float = 2.0,
        cb: Callable[..., bool] | None = None,
        *cb_args: Any,
        **cb_kwargs: Any,
    ) -> tuple[MonitorReturnCode, dict[str, Any]]:
        """As `monitor_job`, with what was known of the job last."""
        until = time.monotonic() + timeout if timeout > 0 else None
        after = 0
        while True:
            meta = self.get_job_meta(job_id)
            if cb is not None and not cb(self, job_id, meta, *cb_args, **cb_kwargs):
                return MonitorReturnCode.ENDED_BY_CB, meta
            if meta["state"] in _ENDED:
                return MonitorReturnCode.JOB_FINISHED, meta
            # The job's end is told at once, whatever the interval.
            pause = time.monotonic() + max(poll_interval, 0.1)
            while time.monotonic() < pause:
                told = self._rest.ask(
                    "GET", _rest.job(job_id, "/events"), after=after, wait=_SLICE
                )
                after = told["next"]
                if told["ended"]:
                    break
                if until is not None and time.monotonic() >= until:
                    return MonitorReturnCode.TIMEOUT, meta

    def wait_for_job(
        self, job_id: str, timeout: float = 0.0, poll_interval: float = 2.0
    ) -> dict[str, Any]:
        """Waits until a job has ended; everything about it.

        Raises:
            JobTimeout: the time ran out.
        """
        code, meta = self.monitor_job_and_return_job_meta(job_id, timeout, poll_interval)
        if code is MonitorReturnCode.TIMEOUT:
            raise errors.JobTimeout(
                f"job {job_id} was not done after {timeout:.0f} s: it is {meta['status']}",
                hint="wait longer, or abort it",
            )
        return meta

    # What runs

    def get_system_info(self) -> SystemInfo:
        """The server, the sites that are connected, the jobs that have not ended."""
        status = self._rest.ask("GET", "/v1/status")
        jobs = [job for job in self.list_jobs() if job["state"] not in _ENDED]
        return SystemInfo(
            ServerInfo("started", str(status.get("started", ""))),
            self.get_connected_client_list(),
            [JobInfo(job["id"], job["name"]) for job in jobs],
        )

    def get_connected_client_list(self) -> list[ClientInfo]:
        """The sites that are connected."""
        return [
            ClientInfo(site["name"], str(site.get("connected_since") or ""))
            for site in self._sites()
            if site["state"] == "connected"
        ]

    def get_client_job_status(
        self, client_names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """One dict per site and job that it has in hand."""
        rows = []
        for site in self._chosen(client_names):
            for job in site.get("jobs") or [None]:
                rows.append({"client_name": site["name"], "site": site, "job_id": job})
        return rows

    def check_status(
        self, target_type: str = TargetType.ALL, targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """How server and sites are: under `server` what it says of itself, under
        `clients` the sites by name."""
        found: dict[str, Any] = {}
        kind = _kind(target_type)
        if kind != "client":
            found["server"] = self._rest.ask("GET", "/v1/status")
        if kind != "server":
            found["clients"] = {site["name"]: site for site in self._chosen(targets)}
        return found

    def report_resources(
        self, target_type: str = TargetType.CLIENT, targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """By site: what it has, and how much of it is free."""
        del target_type
        return {site["name"]: site.get("resources", {}) for site in self._chosen(targets)}

    def report_version(
        self, target_type: str = TargetType.ALL, targets: Sequence[str] | None = None
    ) -> dict[str, str]:
        """The versions of server and sites, by name."""
        kind = _kind(target_type)
        versions = {}
        if kind != "client":
            versions["server"] = str(self._rest.ask("GET", "/v1/status")["version"])
        if kind != "server":
            versions.update(
                {site["name"]: str(site.get("version", "")) for site in self._chosen(targets)}
            )
        return versions

    def get_client_env(self, client_names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What sites run on: system, cores, memory, environments."""
        return [
            {"client": site["name"], **self._ask(site["name"], {"what": "report"})}
            for site in self._chosen(client_names)
            if site["state"] == "connected"
        ]

    def show_stats(
        self, job_id: str, target_type: str = TargetType.ALL, targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """What a job has done so far: rounds, metrics, and by site its state and bytes."""
        meta = self.get_job_meta(job_id)
        sites = {site["site"]: site for site in meta.get("at", ())}
        stats: dict[str, Any] = {}
        if _kind(target_type) != "client":
            stats["server"] = {
                key: meta.get(key)
                for key in ("rounds_done", "rounds", "seconds", "metrics", "bytes_up", "bytes_down")
            }
        if _kind(target_type) != "server":
            stats.update({name: sites[name] for name in _known(targets, list(sites))})
        return stats

    def show_errors(
        self, job_id: str, target_type: str = TargetType.ALL, targets: Sequence[str] | None = None
    ) -> dict[str, list[dict[str, Any]]]:
        """What failed in a job, by site; what failed at the server under `server`."""
        kind = _kind(target_type)
        found: dict[str, list[dict[str, Any]]] = {}
        for failure in self.get_job_meta(job_id).get("failures") or ():
            site = failure.get("site") or "server"
            asked = kind == "all" or (site == "server") == (kind == "server")
            if asked and (not targets or site in targets):
                found.setdefault(site, []).append(failure)
        return found

    def reset_errors(self, job_id: str) -> None:
        """Checks that the job is there. Its errors are part of its record and stay."""
        self.get_job_meta(job_id)

    # Starting and stopping is the owners' business.

    def restart(self, target_type: str, client_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Not possible from here.

        Raises:
            CommandError: it says who does it.
        """
        raise _owners("restarted", target_type, client_names)

    def shutdown(
        self, target_type: str, client_names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Not possible from here.

        Raises:
            CommandError: it says who does it.
        """
        raise _owners("stopped", target_type, client_names)

    def shutdown_system(self) -> None:
        """Not possible from here.

        Raises:
            CommandError: it says who does it.
        """
        raise _owners("stopped", TargetType.ALL, None)

    # Logs and files

    def get_job_logs(
        self,
        job_id: str,
        target: str = "server",
        tail_lines: int | None = None,
        grep_pattern: str | None = None,
        log_file_name: str = "log.txt",
    ) -> dict[str, str]:
        """What was logged in a job.

        Args:
            job_id: the job.
            target: `server`, a site, or `all`.
            tail_lines: only so many lines from the end.
            grep_pattern: only lines in which this regular expression is found.
            log_file_name: `log.txt`, the only one.

        Returns:
            The text, by `server` and site.
        """
        if log_file_name != "log.txt":
            raise errors.InvalidArgumentError(
                f"`log_file_name` is {log_file_name!r}, expected 'log.txt'",
                hint="other files are in what download_job_result fetches",
                field="log_file_name",
            )
        names = [target]
        if target == "all":
            names = ["server", *(site["site"] for site in self.get_job_meta(job_id).get("at", ()))]
        logs = {}
        for name in names:
            text = self._rest.text(_rest.job(job_id, f"/logs/{name}"), tail=tail_lines)
            if grep_pattern is not None:
                import re

                found = re.compile(grep_pattern).search
                text = "".join(line for line in text.splitlines(True) if found(line))
            logs[name] = text
        return logs

    def configure_job_log(self, job_id: str, config: str, target: str = "all") -> dict[str, Any]:
        """Changes what is logged in a job: a level, a mode such as `concise`, or
        `reload`; without a restart. The settings in force, by site."""
        meta = self.get_job_meta(job_id)
        names = [site["site"] for site in meta.get("at", ())] if target == "all" else [target]
        if target == "all":
            names.insert(0, "server")
        return {name: self._ask(name, _log_ask(config, job_id)) for name in names}

    def configure_site_log(self, config: str, target: str = "all") -> dict[str, Any]:
        """The same for server and sites themselves."""
        names = [target]
        if target in ("all", "client"):
            names = [info.name for info in self.get_connected_client_list()]
        if target == "all":
            names.insert(0, "server")
        return {name: self._ask(name, _log_ask(config, None)) for name in names}

    def ls_target(self, target: str, options: str | None = None, path: str | None = None) -> str:
        """What a folder of a site's workspace, or of the server's, holds: a line for
        each entry. `options` may be `-R`."""
        recursive = _only(options, {"-R": "recursive"}, "ls_target")
        told = self._files(target, {"op": "ls", "path": path or "", "recursive": "recursive" in recursive})
        return "".join(
            f"{entry['path']}/\n" if entry.get("folder") else f"{entry['path']}\n"
            for entry in told["entries"]
        )

    def cat_target(self, target: str, options: str | None = None, file: str | None = None) -> str:
        """A file of a site's workspace, or of the server's."""
        _only(options, {}, "cat_target")
        parts: list[str] = []
        at = 0
        while True:
            told = self._files(target, {"op": "cat", "path": _needed(file), "offset": at})
            parts.append(told["text"])
            at = told["end"]
            if at >= told["bytes"] or not told["text"]:
                return "".join(parts)

    def head_target(self, target: str, options: str | None = None, file: str | None = None) -> str:
        """The first lines of a file; `options` may be `-n 20`."""
        return self._lines(target, "head", options, file)

    def tail_target(self, target: str, options: str | None = None, file: str | None = None) -> str:
        """The last lines of a file; `options` may be `-n 20`."""
        return self._lines(target, "tail", options, file)

    def head_target_log(self, target: str, options: str | None = None) -> str:
        """The first lines of a site's log."""
        return self._lines(target, "head", options, "log.txt")

    def tail_target_log(self, target: str, options: str | None = None) -> str:
        """The last lines of a site's log."""
        return self._lines(target, "tail", options, "log.txt")

    def grep_target(
        self,
        target: str,
        options: str | None = None,
        pattern: str | None = None,
        file: str | None = None,
    ) -> str:
        """The lines of a file in which a regular expression is found; `options` may
        be `-i`, `-F`, `-v` and `-n`."""
        known = {"-i": "ignore_case", "-F": "fixed", "-v": "invert", "-n": "numbers"}
        chosen = _only(options, known, "grep_target")
        ask = {
            "op": "grep", "path": _needed(file), "pattern": _needed(pattern, "pattern"),
            **{name: True for name in chosen if name != "numbers"},
        }  # fmt: skip
        lines = self._files(target, ask)["lines"]
        if "numbers" in chosen:
            return "".join(f"{line['line']}:{line['text']}\n" for line in lines)
        return "".join(f"{line['text']}\n" for line in lines)

    def get_working_directory(self, target: str) -> str:
        """The folder that paths are relative to: `.`; where it lies is not told."""
        self._files(target, {"op": "ls", "path": "", "recursive": False})
        return "."

    # Settings of the session

    def set_timeout(self, value: float) -> None:
        """Kept for programs that set it: requests end when server or network do."""
        self._timeout = float(value)

    def unset_timeout(self) -> None:
        """The reverse."""
        self._timeout = None

    def get_available_apps_to_upload(self) -> list[str]:
        """The folders in the working directory that hold an exported job."""
        return sorted(
            entry.name
            for entry in os.scandir(".")
            if entry.is_dir() and os.path.isfile(os.path.join(entry.path, "job.json"))
        )

    def _sites(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._rest.ask("GET", "/v1/sites")["sites"]
        return found

    def _chosen(self, names: Sequence[str] | None) -> list[dict[str, Any]]:
        sites = {site["name"]: site for site in self._sites()}
        return [sites[name] for name in _known(names, list(sites))]

    def _ask(self, target: str, question: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._rest.ask("POST", _rest.site(target, "/ask"), question)
        return answer

    def _files(self, target: str, operation: dict[str, Any]) -> dict[str, Any]:
        return self._ask(target, {"what": "files", **operation})

    def _lines(self, target: str, op: str, options: str | None, file: str | None) -> str:
        words = (options or "").split()
        lines = 10
        if words:
            number = words[1] if words[0] == "-n" and len(words) == 2 else words[0].lstrip("-n")
            if not number.isdecimal():
                raise errors.InvalidArgumentError(
                    f"`options` is {options!r}, expected '-n' and a number", field="options"
                )
            lines = int(number)
        told = self._files(target, {"op": op, "path": _needed(file), "lines": lines})
        return str(told["text"])


def new_secure_session(
    username: str,
    startup_kit_location: str | os.PathLike[str],
    debug: bool = False,
    timeout: float = 10.0,
    study: str = "default",
) -> Session:
    """A `Session`, under the name that users of FLARE know.

    `username` is what FLARE's kits need; here the kit itself says whose it is.
    """
    del username, debug
    if study != "default":
        raise errors.InvalidArgumentError(
            f"`study` is {study!r}, expected 'default', the only one that a server has",
            field="study",
        )
    return Session(startup_kit_location, timeout)


def basic_cb_with_print(
    session: Session, job_id: str, job_meta: dict[str, Any], *args: Any, **kwargs: Any
) -> bool:
    """For `monitor_job`: prints what the job does when that changes."""
    del session, args
    shown = kwargs.get("cb_run_counter")
    status = job_meta["status"]
    if not isinstance(shown, dict) or shown.get("status") != status:
        print(f"{job_id}: {status}", flush=True)
        if isinstance(shown, dict):
            shown["status"] = status
    return True


def _meta(told: dict[str, Any]) -> dict[str, Any]:
    """What the server says of a job, with the keys that FLARE has."""
    by = told.get("submitter") or {}
    state = str(told.get("state") or "")
    status = str(told.get("status") or state)
    return {
        **told,
        # Of an end the word alone; what went wrong is in `failures`.
        "status": state if state in _ENDED and state != "completed_with_losses" else status,
        "status_text": status,
        "job_id": told.get("id"),
        "job_name": told.get("name"),
        "submitter_name": by.get("name"),
        "submitter_org": by.get("org"),
        "submitter_role": by.get("role"),
        "submit_time_iso": told.get("submitted"),
        "start_time": told.get("started"),
        "duration": told.get("seconds"),
    }


def _bundle_folder(kit: str, folder: str, out: str, key: str | None) -> None:
    """Bundles a folder that `Recipe.export` wrote."""
    from firesteel import _native

    path = os.path.join(folder, "job.json")
    try:
        with open(path, encoding="utf-8") as file:
            spec = file.read()
    except OSError as problem:
        raise errors.InvalidJobDefinition(
            f"{folder} holds no job: {path}: {problem.strerror}",
            hint="`recipe.export(folder)` writes one, and so does `python job.py --export`",
        ) from None
    code = []
    home = os.path.join(folder, "code")
    for here, folders, names in os.walk(home):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            path = os.path.join(here, name)
            code.append(("/".join(os.path.relpath(path, home).split(os.sep)), path))
    initial = os.path.join(folder, "models", "initial.safetensors")
    try:
        _native.make_bundle(
            kit, spec, code, initial if os.path.isfile(initial) else None, out, key
        )
    except errors.SpecError as problem:
        raise errors.InvalidJobDefinition(
            problem.message, hint=problem.hint, code=problem.code, field=problem.field
        ) from None


def _log_ask(config: str, job: str | None) -> dict[str, Any]:
    ask = (
        {"what": "log_config", "config": _text(config)}
        if os.path.isfile(config)
        else {"what": "log_level", "level": config}
    )
    return ask if job is None else {**ask, "job": job}


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        text: str = file.read()
        return text


def _kind(target_type: str) -> str:
    word = str(getattr(target_type, "value", target_type))
    if word not in ("all", "server", "client"):
        raise errors.InvalidArgumentError(
            f"`target_type` is {word!r}, expected 'all', 'server' or 'client'", field="target_type"
        )
    return word


def _known(names: Sequence[str] | None, known: list[str]) -> list[str]:
    for name in names or ():
        if name not in known:
            raise errors.InvalidTarget(
                f"there is no site {name!r}", hint=f"there are {', '.join(known) or 'none'}"
            )
    return list(names) if names else known


def _only(options: str | None, known: dict[str, str], method: str) -> list[str]:
    """What some options mean; there is no shell that would know others."""
    chosen = []
    for word in (options or "").split():
        if word not in known:
            raise errors.InvalidArgumentError(
                f"`{method}` does not know the option {word!r}, only "
                f"{', '.join(known) or 'none'}",
                field="options",
            )
        chosen.append(known[word])
    return chosen


def _needed(value: str | None, field: str = "file") -> str:
    if not value:
        raise errors.InvalidArgumentError(f"`{field}` is missing", field=field)
    return value


def _owners(done: str, target_type: str, names: Sequence[str] | None) -> errors.CommandError:
    who = ", ".join(names or ()) or f"target {_kind(target_type)!r}"
    return errors.CommandError(
        f"{who}: servers and sites are {done} by their owners, not by admins",
        hint="systemctl does it where they run as services; `firesteel poc stop` on one machine",
        code="not-supported",
    )
