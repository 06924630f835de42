"""What all recipes share: a job that can be run or exported."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from firesteel.errors import SpecError
from firesteel.recipe import _bundle, _fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from firesteel.recipe._env import ExecEnv
    from firesteel.recipe._run import Run


class Job:
    """A job as a recipe describes it: everything but where it runs.

    Attributes:
        spec: the job spec of docs/specs, without its sites.
        make_params: the initial model's params, or None when the first round makes it.
        site_config: what differs at a site, by its name.
        site_names: the sites, when the recipe names them.
        durations: what the recipe says about time limits.
        save_as: file names under which the last and best model are wanted as well.
        installed: scripts that the sites have, which do not travel with the job.
        files: further files and folders that do.
    """

    def __init__(self, spec: dict[str, Any], make_params: Callable[[], Any] | None) -> None:
        self.spec = spec
        self.make_params = make_params
        self.site_config: dict[str, dict[str, Any]] = {}
        self.durations: dict[str, float] = {}
        self.save_as: dict[str, str] = {}
        self.installed: set[str] = set()
        self.files: list[str | os.PathLike[str]] = []


class Recipe:
    """A job that can be run in an environment, or exported as a folder."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Recipe:
        # Python's own error for a mistyped keyword does not say what was meant.
        known = _parameters(cls)
        for key in kwargs:
            if key not in known:
                hint = _fields.did_you_mean(key, known)
                raise SpecError(
                    f"{cls.__name__} has no parameter {key!r}"
                    + (f"; {hint}" if hint else ""),
                    hint=f"its parameters are {', '.join(sorted(known))}",
                    field=key,
                )
        return super().__new__(cls)

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self._job.spec["name"])

    @property
    def min_clients(self) -> int:
        """The sites the job needs."""
        return int(self._job.spec["min_clients"])

    def add_client_file(
        self, file_path: str | os.PathLike[str], clients: None = None
    ) -> None:
        """Has a file, or a folder, travel with the job's code to the sites."""
        if clients is not None:
            raise _fields.refuse("clients", clients, "None", "a job's code is one for all sites")
        self._job.files.append(file_path)

    def process_env(self, env: ExecEnv) -> None:
        """A hook for recipes that cannot run everywhere; called before a run."""

    def execute(
        self,
        env: ExecEnv,
        server_exec_params: dict[str, Any] | None = None,
        client_exec_params: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        strict: bool = False,
    ) -> Run:
        """Runs the job.

        A `SimEnv` returns when it is over. A `PocEnv` and a `ProdEnv` return when
        the server has taken the job: `get_result` of the run waits for its end,
        and raises what is written below.

        With `--export` on the command line the job is written to a folder
        instead (`--export-dir`, by default `./fl_job`), and the program ends.

        Args:
            env: where, `SimEnv(num_clients=5)` say.
            server_exec_params: not used by the environments there are.
            client_exec_params: not used by the environments there are.
            resume: go on with the job's last run, from its last committed round.
            strict: count a job that completed without some of its sites as an
                error, `Incomplete`, which ends the program with exit code 3.

        Raises:
            SpecError: the job cannot work as described.
            JobFailed: it did not reach its end; the error says which site
                failed, when, and why.
            Incomplete: with `strict`, it completed without all sites.
        """
        folder = _export_folder()
        if folder is not None:
            path = self.export(folder, env=env)
            print(f"the job is in {path}")
            raise SystemExit(0)
        return self.run(
            env, server_exec_params, client_exec_params, resume=resume, strict=strict
        )

    def run(
        self,
        env: ExecEnv,
        server_exec_params: dict[str, Any] | None = None,
        client_exec_params: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        strict: bool = False,
    ) -> Run:
        """The same as `execute`, whatever the command line says."""
        from firesteel.recipe._env import ExecEnv

        if not isinstance(env, ExecEnv):
            raise _fields.refuse("env", env, "an environment", "SimEnv(num_clients=2), say")
        for field, value in (
            ("server_exec_params", server_exec_params),
            ("client_exec_params", client_exec_params),
        ):
            if value:
                raise _fields.refuse(
                    field, value, "nothing", "give the recipe what the job needs to know"
                )
        self.process_env(env)
        return env.deploy(
            self._job,
            resume=_fields.truth("resume", resume),
            strict=_fields.truth("strict", strict),
        )

    def export(
        self,
        job_dir: str | os.PathLike[str],
        server_exec_params: dict[str, Any] | None = None,
        client_exec_params: dict[str, Any] | None = None,
        env: ExecEnv | None = None,
    ) -> str:
        """Writes the job as a folder, without running it.

        `job.json` is the job spec, `code/` holds the scripts and the files beside
        them that they import, `models/initial.safetensors` the initial model: what
        a bundle holds, so that `firesteel job submit` takes the folder. With `env`,
        the sites are those of the environment.

        Returns:
            The folder, `<job_dir>/<name>`.
        """
        import shutil

        del server_exec_params, client_exec_params
        spec = json.loads(json.dumps(self._job.spec))
        spec["sites"] = env.sites_for(self._job) if env is not None else []
        spec["site"] = {
            site: dict(settings) for site, settings in self._job.site_config.items()
        }
        target = os.path.join(os.path.abspath(os.fspath(job_dir)), self.name)
        home = os.path.join(target, "code")
        os.makedirs(home, exist_ok=True)
        for inside, path in _bundle.take(self._job, spec).files.items():
            place = os.path.join(home, *inside.split("/"))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copy2(path, place)
        if self._job.make_params is not None:
            from firesteel._models import save_model

            spec["initial_model"] = "models/initial.safetensors"
            os.makedirs(os.path.join(target, "models"), exist_ok=True)
            save_model(os.path.join(target, spec["initial_model"]), self._job.make_params())
        with open(os.path.join(target, "job.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file, indent=2, ensure_ascii=False)
            file.write("\n")
        return target


def _parameters(kind: type) -> list[str]:
    """The keywords that a class takes, those that it passes on included."""
    names: list[str] = []
    for base in kind.__mro__:
        init = base.__dict__.get("__init__")
        code = getattr(init, "__code__", None)
        if code is None:
            continue
        names += code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        if not code.co_flags & 0x08:  # CO_VARKEYWORDS
            break
    return names


_asked: list[str] = []


def take_export_arguments(argv: list[str]) -> None:
    """Takes `--export` and `--export-dir DIR` off a command line.

    Called when `firesteel.recipe` is imported, so that a script's own argparse
    does not trip over them.
    """
    kept, folder, asked = [], None, False
    words = iter(argv)
    for word in words:
        if word == "--export":
            asked = True
        elif word == "--export-dir":
            asked = True
            folder = next(words, None)
            if folder is None:
                raise SpecError("--export-dir needs a folder", field="--export-dir")
        elif word.startswith("--export-dir="):
            asked = True
            folder = word.partition("=")[2]
        else:
            kept.append(word)
    if asked:
        argv[:] = kept
        _asked[:] = [folder or "./fl_job"]


def _export_folder() -> str | None:
    return _asked[0] if _asked else None
