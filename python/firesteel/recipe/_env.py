"""Where a job runs."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from firesteel.errors import Error, SpecError
from firesteel.recipe import _fields, _run
from firesteel.recipe._run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from firesteel._native import Simulation
    from firesteel.recipe._recipe import Job

# Seconds between two looks at whether somebody pressed Ctrl-C.
_SLICE = 0.2
# Where a role may look for `log_config=`'s value and the workspace.
ROOT_VARIABLE = "FIRESTEEL_WORKSPACE_ROOT"
BINARY_VARIABLE = "FIRESTEEL_BINARY"

_DURATIONS = ("connect", "idle", "drain", "lease", "round", "task", "trainer_start", "stop_grace")


class ExecEnv(abc.ABC):
    """An environment: somewhere that a job can run.

    Args:
        extra: further settings by name.
    """

    def __init__(self, extra: Mapping[str, Any] | None = None) -> None:
        self.extra: dict[str, Any] = dict(
            _fields.mapping("extra", extra or {}, "a dict of settings")
        )

    def get_extra_prop(self, name: str, default: Any = None) -> Any:
        """A further setting."""
        return self.extra.get(name, default)

    @abc.abstractmethod
    def sites_for(self, job: Job) -> list[str]:
        """The names of the sites that a job would run at."""

    @abc.abstractmethod
    def deploy(self, job: Job, *, resume: bool, strict: bool) -> Run:
        """Runs a job to its end."""


class SimEnv(ExecEnv):
    """The whole federation on this machine: server, sites and their trainers.

    Args:
        num_clients: how many sites, named `site-1`, `site-2` and so on.
        clients: their names instead.
        num_threads: the former name of `num_workers`.
        num_workers: trainers that work at the same time; by default all sites'
            when they are few, else three for every two cores.
        reuse_processes: with more sites than workers, run the scripts of several
            sites one after another in the same process: several times faster for
            short tasks, but what a script changes inside a library stays changed
            for the next site.
        gpu_config: GPUs for the workers, `"0,1"` for one each, `"[0,1],[2]"`
            for groups.
        log_config: what the terminal shows: `concise` (default), `full`,
            `verbose`, a level, or a file of levels.
        workspace_root: where runs are kept; `./firesteel-runs`, or the
            environment's `FIRESTEEL_WORKSPACE_ROOT`.
        seed: makes the run repeatable bit for bit.
        debug: the site whose script runs in this very process, without a
            deadline, so that `breakpoint()` works.
        data: where data lies: `{site: {name: path}}`, or `{name: path}` for
            all sites, in which `{site}` stands for the site's name.
        durations: time limits in seconds by name, `{"trainer_start": 300}`.
        extra: `{"console": "plain"}` or `"off"` for the progress display.

    Raises:
        SpecError: naming the parameter that is wrong.
    """

    def __init__(
        self,
        *,
        num_clients: int = 0,
        clients: Sequence[str] | None = None,
        num_threads: int | None = None,
        num_workers: int | None = None,
        reuse_processes: bool = False,
        gpu_config: str | None = None,
        log_config: str | None = None,
        workspace_root: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        debug: str | None = None,
        data: Mapping[str, Any] | None = None,
        durations: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(extra)
        self.num_clients = _fields.whole("num_clients", num_clients, least=0)
        self.clients = _client_names(clients, self.num_clients)
        if num_threads is not None and num_workers is not None:
            raise SpecError(
                "`num_threads` and `num_workers` are the same parameter; give `num_workers` alone",
                field="num_threads",
            )
        workers = num_workers if num_workers is not None else num_threads
        self.num_workers = (
            None if workers is None else _fields.whole("num_workers", workers, least=1)
        )
        self.reuse_processes = _fields.truth("reuse_processes", reuse_processes)
        self.gpus = _gpus(gpu_config)
        self.log_config = (
            None
            if log_config is None
            else _fields.text("log_config", log_config, expected="a mode, level or file")
        )
        root = workspace_root if workspace_root is not None else os.environ.get(ROOT_VARIABLE)
        self.workspace_root = os.path.abspath(os.fspath(root) if root else "firesteel-runs")
        self.seed = None if seed is None else _seed(seed)
        self.debug = None if debug is None else _fields.name("debug", debug)
        self.data = _data_map(data)
        self.durations = _durations(durations)

    def sites_for(self, job: Job) -> list[str]:
        """The sites: those named, else as many as asked for, else as the job needs."""
        if self.clients:
            return list(self.clients)
        if self.num_clients == 0 and job.site_config:
            return list(job.site_config)
        count = self.num_clients or int(job.spec["min_clients"])
        return [f"site-{number}" for number in range(1, count + 1)]

    def deploy(self, job: Job, *, resume: bool, strict: bool) -> Run:
        """Runs a job to its end; see `Recipe.execute`."""
        from firesteel import _native

        spec = self._spec(job)
        os.makedirs(self.workspace_root, exist_ok=True)
        staging: str | None = None
        try:
            if job.make_params is not None and resume:
                spec["initial_model"] = self._kept_initial(spec["name"])
            elif job.make_params is not None:
                staging, spec["initial_model"] = self._stage(job)
            text = json.dumps(spec, ensure_ascii=False)
            _native.validate_job(text)
            options = json.dumps(self._options(spec, job, resume), ensure_ascii=False)
            simulation = _native.Simulation(text, options)
            simulation.start()
            self._wait(simulation, spec)
            outcome = json.loads(simulation.result())
        finally:
            if staging is not None:
                _remove(staging)
        run = Run(outcome)
        if run.get_status().startswith("completed"):
            _run.save_further(run, job.save_as)
        _run.check(run, outcome, strict=strict)
        return run

    def _spec(self, job: Job) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(json.dumps(job.spec))
        sites = self.sites_for(job)
        spec["sites"] = sites
        spec["seed"] = self.seed
        there = frozenset(sites)
        for site in job.site_config:
            if site not in there:
                raise SpecError(
                    f"`site_config` names {site!r}, which is not a site of this job",
                    hint=_fields.did_you_mean(site, sites) or f"the sites are {_some(sites)}",
                    field="site_config",
                )
        if self.debug is not None and self.debug not in sites:
            raise _fields.refuse(
                "debug", self.debug, "one of the sites",
                _fields.did_you_mean(self.debug, sites) or f"the sites are {_some(sites)}",
            )  # fmt: skip
        wanted = int(spec["min_clients"])
        if wanted > len(sites):
            raise SpecError(
                f"`min_clients` is {wanted}, but there are {len(sites)} sites",
                hint=f"raise `num_clients` of SimEnv to {wanted}, or lower `min_clients`",
                field="min_clients",
            )
        if spec["trainer"]["command"][0] in ("python3", "python"):
            # The interpreter that runs the job, wherever the PATH leads.
            spec["trainer"]["command"][0] = sys.executable
        spec["site"] = self._site_settings(job, spec, sites)
        _check_scripts(spec)
        if "PYTHONBREAKPOINT" not in os.environ:
            # Nobody sits in front of a supervised trainer.
            spec["trainer"].setdefault("env", {}).setdefault(
                "PYTHONBREAKPOINT", "firesteel._breakpoint.skip"
            )
        return spec

    def _site_settings(
        self, job: Job, spec: dict[str, Any], sites: list[str]
    ) -> dict[str, dict[str, Any]]:
        there = frozenset(sites)
        for site in self.data:
            if site and site not in there:
                raise SpecError(
                    f"`data` names {site!r}, which is not a site of this job",
                    hint=_fields.did_you_mean(site, sites) or f"the sites are {_some(sites)}",
                    field="data",
                )
        settings: dict[str, dict[str, Any]] = {}
        for site in sites:
            own = dict(job.site_config.get(site, {}))
            data = self._data_at(site, spec["data"], own.get("data", {}))
            if data:
                own["data"] = data
            if own:
                settings[site] = own
        return settings

    def _data_at(
        self, site: str, asked: dict[str, str], own: dict[str, str]
    ) -> dict[str, str]:
        """What the names of data mean at a site."""
        here = {**self._common(site), **self.data.get(site, {}), **own}
        found = {}
        for name, source in asked.items():
            meant = here.get(source, here.get(name))
            if meant is None and _is_place(source):
                meant = source
            if meant is None:
                names = ", ".join(map(repr, here)) or "none"
                raise SpecError(
                    f"{site} has no data named {source!r}, which the job asks for as {name!r}; "
                    f"it has: {names}",
                    hint=_fields.did_you_mean(source, here)
                    or f'SimEnv(data={{"{site}": {{"{source}": "path"}}}})',
                    field="data",
                )
            found[name] = meant
        for name, meant in here.items():
            if name not in asked.values():
                found.setdefault(name, meant)
        return {name: _place(meant) for name, meant in found.items()}

    def _common(self, site: str) -> dict[str, str]:
        return {
            name: path.replace("{site}", site) for name, path in self.data.get("", {}).items()
        }

    def _stage(self, job: Job) -> tuple[str, str]:
        """Writes the initial model where the run can take it over without a copy."""
        from firesteel._models import save_model

        import tempfile

        assert job.make_params is not None
        folder = tempfile.mkdtemp(prefix=".initial-", dir=self.workspace_root)
        try:
            path = save_model(os.path.join(folder, "initial.safetensors"), job.make_params())
        except BaseException:
            _remove(folder)
            raise
        return folder, path

    def _kept_initial(self, name: str) -> str:
        """The model that the run to be resumed began with."""
        folder = os.path.join(self.workspace_root, name, "latest", "models")
        return os.path.join(folder, "initial.safetensors")

    def _options(self, spec: dict[str, Any], job: Job, resume: bool) -> dict[str, Any]:
        sites = len(spec["sites"])
        cores = _cores()
        workers = self.num_workers
        if workers is None:
            # With many sites a task is mostly the start and the end of a process,
            # which wait in turn: one trainer more per two cores fills the gaps.
            workers = sites if sites <= max(8, 2 * cores) else cores + (cores + 1) // 2
        # The environment is nearer to the machine than the recipe.
        durations = {**job.durations, **self.durations}
        return {
            "root": self.workspace_root,
            "workspace": None,
            "python": sys.executable,
            "binary": binary(),
            "num_workers": min(workers, sites),
            "reuse_processes": self.reuse_processes,
            "gpus": self.gpus,
            "log": self.log_config,
            "console": str(self.get_extra_prop("console", "auto")),
            "debug": self.debug,
            "resume": resume,
            "durations": {f"{name}_s": value for name, value in durations.items()},
            "threads": None,
            "env": _trainers_path(),
        }

    def _wait(self, simulation: Simulation, spec: dict[str, Any]) -> None:
        try:
            if self.debug is not None:
                self._run_in_foreground(simulation, spec, self.debug)
            while not simulation.wait(_SLICE):
                pass
        except BaseException as stopped:
            pressed = isinstance(stopped, KeyboardInterrupt)
            simulation.abort("Ctrl-C was pressed" if pressed else f"{type(stopped).__name__}")
            if pressed:
                print("stopping the job; press Ctrl-C again to leave at once", file=sys.stderr)
            # A second Ctrl-C comes out of this loop and leaves everything behind;
            # the supervisors end the trainers when this process is gone.
            while not simulation.wait(_SLICE):
                pass
            raise

    def _run_in_foreground(self, simulation: Simulation, spec: dict[str, Any], site: str) -> None:
        profile = _attach_profile(simulation, site)
        if profile is None:
            return
        own = spec["site"].get(site, {})
        script = own.get("script") or spec["trainer"]["script"]
        args = own.get("args")
        if args is None:
            args = spec["trainer"]["args"]
        run_here(script, args, profile)


def run_here(script: str, args: Sequence[str], profile: str) -> None:
    """Runs a training script in this process, as the trainer of an attach profile.

    What it raises is its site's failure, not ours; Ctrl-C is ours.
    """
    import runpy

    import firesteel.client as flare

    with _as_program(script, args), _variable("FIRESTEEL_ATTACH", profile):
        earlier, flare._current = flare._current, None
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            if ended.code not in (None, 0):
                flare._report_crash(SystemExit, ended, ended.__traceback__)
        except Exception as error:
            # Also what the debugger's `quit` raises.
            flare._report_crash(type(error), error, error.__traceback__)
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__)
        finally:
            if flare._current is not None:
                with contextlib.suppress(Error):
                    flare.shutdown()
            flare._current = earlier


@contextlib.contextmanager
def _as_program(script: str, args: Sequence[str]) -> Iterator[None]:
    """What a program of its own would find: argv and the search path."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *args]
    sys.path.insert(0, os.path.dirname(script))
    try:
        yield
    finally:
        sys.argv = argv
        sys.path[:] = path


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    earlier = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if earlier is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = earlier


def _attach_profile(simulation: Simulation, site: str) -> str | None:
    """The profile that the simulation writes; None when it ends before it does."""
    while True:
        ended = simulation.wait(0.02)
        folder = json.loads(simulation.status()).get("run_dir")
        path = os.path.join(folder, "attach", f"{site}.json") if folder else ""
        if path and os.path.isfile(path):
            return path
        if ended:
            return None


def binary() -> str:
    """The `firesteel` program, which supervises trainers.

    Raises:
        SpecError: when it is not there.
    """
    # Imported here: with its compressors it costs as much as all the rest.
    import shutil

    named = os.environ.get(BINARY_VARIABLE)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = [
        named,
        os.path.join(package, "_bin", "firesteel"),
        os.path.join(os.path.dirname(sys.executable), "firesteel"),
        shutil.which("firesteel"),
    ]
    for place in places:
        if place and os.access(place, os.X_OK) and os.path.isfile(place):
            return os.path.abspath(place)
        if named:
            break
    raise SpecError(
        f"{BINARY_VARIABLE} is {named!r}, which is no program"
        if named
        else "the `firesteel` program is not where the package was installed",
        hint="install the package again, or set FIRESTEEL_BINARY to the program's path",
    )


def _remove(folder: str) -> None:
    """Removes a folder of ours, and what is in it; what cannot be is left."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _trainers_path() -> dict[str, str]:
    """Lets trainers import this very package where it is not installed.

    A script may have found it through `sys.path`, which processes do not inherit.
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(home) in ("site-packages", "dist-packages"):
        return {}
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if home in given:
        return {}
    return {"PYTHONPATH": os.pathsep.join([*given, home])}


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _client_names(clients: Any, count: int) -> list[str]:
    if clients is None:
        return []
    if isinstance(clients, str):
        raise _fields.refuse("clients", clients, "a list of site names")
    names = [_fields.name("clients", name) for name in clients]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SpecError(f"`clients` names {name!r} twice", field="clients")
        seen.add(name)
    if count and count != len(names):
        raise SpecError(
            f"`num_clients` is {count}, but `clients` names {len(names)}",
            hint="leave `num_clients` out",
            field="num_clients",
        )
    return names


def _gpus(config: Any) -> list[str]:
    if config is None or config == "":
        return []
    form = 'GPU numbers, "0,1" for one each or "[0,1],[2]" for groups'
    given = _fields.text("gpu_config", config, expected=form)
    compact = re.sub(r"\s", "", given)
    group = r"\[\d+(?:,\d+)*\]|\d+"
    if not re.fullmatch(rf"(?:{group})(?:,(?:{group}))*", compact):
        raise _fields.refuse("gpu_config", config, form)
    return [found.strip("[]") for found in re.findall(group, compact)]


def _seed(seed: Any) -> int:
    index = getattr(seed, "__index__", None)
    if isinstance(seed, bool) or index is None or not 0 <= int(index()) < 2**64:
        raise _fields.refuse("seed", seed, "a whole number from 0 below 2**64")
    return int(index())


def _data_map(data: Any) -> dict[str, dict[str, str]]:
    """Site to names; what holds for all sites is under the empty name."""
    if data is None:
        return {}
    form = "{site: {name: path}} or {name: path}"
    given = _fields.mapping("data", data, form)
    per_site = [isinstance(value, dict) for value in given.values()]
    if any(per_site) and not all(per_site):
        raise _fields.refuse("data", data, f"{form}, not a mixture")
    sites = given if any(per_site) else {"": given}
    result: dict[str, dict[str, str]] = {}
    for site, names in sites.items():
        field = f"data[{site!r}]" if site else "data"
        result[site] = {}
        for name, path in _fields.mapping(field, names, "a dict of paths by name").items():
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            result[site][name] = _fields.text(f"{field}[{name!r}]", path, expected="a path or URI")
    return result


def _durations(durations: Any) -> dict[str, float]:
    if durations is None:
        return {}
    given = _fields.mapping("durations", durations, 'a dict such as {"trainer_start": 300}')
    plain = {name.removesuffix("_s"): value for name, value in given.items()}
    _fields.known_keys("durations", plain, _DURATIONS)
    return {
        name: _fields.seconds(f"durations[{name!r}]", value) for name, value in plain.items()
    }


def _is_place(text: str) -> bool:
    return "://" in text or text.startswith(("/", "./", "../", "~"))


def _place(text: str) -> str:
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _some(sites: Sequence[str]) -> str:
    return ", ".join(sites[:5]) + (", …" if len(sites) > 5 else "")


def _check_scripts(spec: dict[str, Any]) -> None:
    """The scripts were there when the recipe was built; are they still?"""
    for part in (spec["trainer"], *spec["site"].values()):
        script = part.get("script")
        if script and not os.path.isfile(script):
            raise SpecError(
                f"`train_script`: the training script {script} does not exist",
                hint="it was there when the recipe was built",
                code="script-missing",
                field="train_script",
            )
