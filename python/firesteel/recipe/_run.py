"""A job that ran."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from firesteel.errors import Error, Incomplete, JobAborted, JobFailed, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Lines of a trainer's output that an error message repeats.
_TAIL = 12


class Run:
    """What became of a job.

    Attributes:
        failures: one dict per site whose newest task failed: `site`, `round`,
            `code`, `phase`, `message`, `hint`, `traceback`, `log_tail`.
    """

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        self._outcome = dict(outcome)
        self.failures: list[dict[str, Any]] = [dict(f) for f in outcome.get("failures") or ()]

    def get_job_id(self) -> str:
        """The job's id."""
        return str(self._outcome.get("job_id") or "")

    def get_status(self) -> str:
        """`completed`, `completed with 4 of 5 sites`, `failed` or `aborted`."""
        return str(self._outcome.get("status") or "")

    def get_result(self, timeout: float = 0.0, clean_up: bool = True) -> str | None:
        """The run's directory, with models, metrics and logs.

        `timeout` and `clean_up` are for environments where the run is elsewhere.
        """
        del timeout, clean_up
        path = self._outcome.get("run_dir")
        return str(path) if path else None

    def abort(self) -> None:
        """Ends the job. A simulation is over when `execute` returns."""

    def model_path(self, which: str = "last") -> str:
        """The file of the `last`, `best` or `initial` model.

        Raises:
            SpecError: when there is no such model.
        """
        names = ("last", "best", "initial")
        if which not in names:
            raise SpecError(f"`which` is {which!r}, expected one of {', '.join(names)}")
        folder = os.path.join(self.get_result() or "", "models")
        path = os.path.join(folder, f"{which}.safetensors")
        if not os.path.isfile(path):
            why = {
                "last": "no round was completed",
                "best": f"no round's metrics had the key metric {self._key_metric()!r}",
                "initial": "the job began without one",
            }[which]
            raise SpecError(
                f"this run has no {which} model: {why}", hint=f"see what there is in {folder}"
            )
        return path

    def model(self, which: str = "last") -> Any:
        """The params of the `last`, `best` or `initial` model.

        They come as the script saw them: NumPy arrays, or torch tensors in a
        PyTorch job.
        """
        from firesteel._models import load_model

        return load_model(self.model_path(which), framework=self._framework())

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per round, as in the run's `metrics/rounds.jsonl`."""
        path = os.path.join(self.get_result() or "", "metrics", "rounds.jsonl")
        try:
            with open(path, encoding="utf-8") as file:
                return [json.loads(line) for line in file if line.strip()]
        except FileNotFoundError:
            return []

    def _spec(self) -> dict[str, Any]:
        try:
            with open(
                os.path.join(self.get_result() or "", "job.json"), encoding="utf-8"
            ) as file:
                spec: dict[str, Any] = json.load(file)
                return spec
        except (OSError, ValueError):
            return {}

    def _framework(self) -> str:
        return str(self._spec().get("trainer", {}).get("framework", "numpy"))

    def _key_metric(self) -> str:
        return str(self._spec().get("selection", {}).get("key_metric", "accuracy"))

    def __repr__(self) -> str:
        return f"<Run {self.get_job_id()}: {self.get_status()}>"


def check(run: Run, outcome: Mapping[str, Any], *, strict: bool) -> None:
    """Raises what the end of a job calls for.

    Raises:
        JobFailed: it did not reach its end.
        JobAborted: somebody ended it.
        Incomplete: with `strict`, it completed without some sites.
    """
    status = run.get_status()
    if status == "completed":
        return
    if status.startswith("completed"):
        if not strict:
            return
        _exit_with_3()
        raise Incomplete(
            _sentence(run, outcome, f"the job {status}"),
            hint=_hint(run, outcome),
            status=status,
            failures=run.failures,
            run=run,
        )
    kind = JobAborted if status == "aborted" else JobFailed
    name = run.get_job_id() or "the job"
    raise kind(
        _sentence(run, outcome, f"{name} {'was aborted' if status == 'aborted' else 'failed'}"),
        hint=_hint(run, outcome),
        code=str(run.failures[0].get("code") or "") if run.failures else "",
        status=status,
        failures=run.failures,
        run=run,
    )


def _sentence(run: Run, outcome: Mapping[str, Any], start: str) -> str:
    cause = outcome.get("cause")
    lines = [f"{start}: {cause}" if cause else start]
    for failure in run.failures:
        site = failure.get("site") or "?"
        phase = failure.get("phase") or "?"
        # Stored rounds count from zero, people from one.
        at = f" of round {failure['round'] + 1}" if failure.get("round") is not None else ""
        lines.append(f"  {site} ({phase}{at}): {failure.get('message', '')}")
        traceback = (failure.get("traceback") or "").rstrip()
        if traceback:
            lines += [f"    | {line}" for line in traceback.splitlines()]
        tail = [line for line in failure.get("log_tail") or () if line.strip()]
        if tail and not traceback:
            lines.append("    its last lines:")
            lines += [f"    | {line}" for line in tail[-_TAIL:]]
    folder = outcome.get("run_dir")
    if folder:
        lines.append(f"  logs: {folder}")
    return "\n".join(lines)


def _hint(run: Run, outcome: Mapping[str, Any]) -> str:
    for given in (outcome.get("hint"), *(f.get("hint") for f in run.failures)):
        if given:
            return str(given)
    return ""


def _exit_with_3() -> None:
    """Makes an uncaught `Incomplete` end the program with exit code 3."""
    earlier = sys.excepthook
    if getattr(earlier, "_firesteel_strict", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        earlier(kind, error, trace)
        if isinstance(error, Incomplete):
            # Python exits with 1 after a hook, unless the hook says otherwise.
            raise SystemExit(3)

    hook._firesteel_strict = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def save_further(run: Run, names: Mapping[str, str]) -> None:
    """Writes the models that the recipe wants under names of their own."""
    from firesteel._models import save_model

    folder = os.path.join(run.get_result() or "", "models")
    for which, name in names.items():
        try:
            save_model(os.path.join(folder, name), run.model(which))
        except Error as problem:
            print(f"warning: {name} was not written: {problem.message}", file=sys.stderr)
