"""`SimEnv` and `Run` against the stand-in: what is asked of Rust, what is made of its answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel
from firesteel.errors import Incomplete, JobAborted, JobFailed, SpecError
from firesteel.recipe import FedAvgRecipe, SimEnv
from firesteel.recipe import _env as env_module

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRESTEEL_BINARY", sys.executable)
    monkeypatch.delenv("FIRESTEEL_WORKSPACE_ROOT", raising=False)
    (tmp_path / "client.py").write_text("import firesteel.client\n")
    fake.Simulation.outcome = {"status": "completed", "run_dir": str(tmp_path / "run")}
    return tmp_path


def recipe(**parameters: Any) -> FedAvgRecipe:
    given = {"train_script": "client.py", "min_clients": 2, **parameters}
    return FedAvgRecipe(**given)


def started(fake: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec, options = fake.Simulation.started[-1]
    return spec, options


def test_sites_workers_and_folders(fake: Any, here: Path) -> None:
    recipe().execute(SimEnv(num_clients=3))
    spec, options = started(fake)
    assert spec["sites"] == ["site-1", "site-2", "site-3"]
    assert spec["seed"] is None and spec.get("initial_model") is None
    assert options["root"] == str(here / "firesteel-runs")
    assert options["python"] == sys.executable
    assert options["num_workers"] == 3
    assert options["resume"] is False and options["debug"] is None
    recipe(launch_timeout=5).execute(
        SimEnv(
            clients=["a", "b"], num_threads=1, gpu_config="[0,1],[2]", seed=3,
            log_config="full", workspace_root=here / "w", durations={"idle": 9},
            extra={"console": "off"},
        )
    )  # fmt: skip
    spec, options = started(fake)
    assert spec["sites"] == ["a", "b"] and spec["seed"] == 3
    assert options["gpus"] == ["0,1", "2"] and options["num_workers"] == 1
    assert options["log"] == "full" and options["console"] == "off"
    assert options["root"] == str(here / "w")
    assert options["durations"] == {"trainer_start_s": 5.0, "idle_s": 9.0}


def test_many_sites_share_the_cores(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_module, "_cores", lambda: 2)
    recipe().execute(SimEnv(num_clients=8))
    assert started(fake)[1]["num_workers"] == 8
    recipe().execute(SimEnv(num_clients=9))
    assert started(fake)[1]["num_workers"] == 3


def test_without_a_number_the_job_says_how_many(fake: Any) -> None:
    recipe(min_clients=3).execute(SimEnv())
    assert started(fake)[0]["sites"] == ["site-1", "site-2", "site-3"]
    recipe(site_config={"x": {}, "y": {}}).execute(SimEnv())
    assert started(fake)[0]["sites"] == ["x", "y"]


def test_the_environment_variable_names_the_root(
    fake: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTEEL_WORKSPACE_ROOT", str(here / "elsewhere"))
    recipe().execute(SimEnv())
    assert started(fake)[1]["root"] == str(here / "elsewhere")


def test_the_initial_model_is_a_file_while_the_job_runs(
    fake: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Looks(fake.Simulation):  # type: ignore[misc, name-defined]
        def start(self) -> None:
            path = fake.Simulation.started[-1][0]["initial_model"]
            seen.append(firesteel.load_model(path)["w"].tolist())

    monkeypatch.setattr(fake, "Simulation", Looks)
    recipe(model={"w": np.array([1.0, 2.0])}).execute(SimEnv())
    assert seen == [[1, 2]]
    assert list((here / "firesteel-runs").iterdir()) == []


def test_data_by_name(fake: Any, here: Path) -> None:
    env = SimEnv(
        num_clients=2,
        data={"site-1": {"digits": "one.npz"}, "site-2": {"train": "s3://bucket/two"}},
    )
    recipe(data={"train": "digits"}).execute(env)
    site = started(fake)[0]["site"]
    assert site["site-1"]["data"] == {"train": str(here / "one.npz")}
    assert site["site-2"]["data"] == {"train": "s3://bucket/two"}
    recipe().execute(SimEnv(num_clients=2, data={"train": "/data/{site}.npz"}))
    site = started(fake)[0]["site"]
    assert site["site-2"]["data"] == {"train": "/data/site-2.npz"}
    recipe(data={"train": "/abs/x.npz"}).execute(SimEnv(num_clients=2))
    assert started(fake)[0]["site"]["site-1"]["data"] == {"train": "/abs/x.npz"}


REFUSED = [
    ({"min_clients": 5}, {"num_clients": 2}, "`min_clients` is 5, but there are 2 sites"),
    ({"site_config": {"site-9": {}}}, {"num_clients": 2}, "`site_config` names 'site-9'"),
    ({}, {"num_clients": 2, "debug": "site-9"}, "`debug` is 'site-9'"),
    ({}, {"num_clients": 2, "data": {"site-9": {"a": "b"}}}, "`data` names 'site-9'"),
    (
        {"data": {"train": "digits"}},
        {"num_clients": 2, "data": {"site-1": {"digit": "x"}}},
        "site-1 has no data named 'digits', which the job asks for as 'train'; it has: 'digit'",
    ),
]


@pytest.mark.parametrize(("job", "env", "sentence"), REFUSED)
def test_what_does_not_fit_together_is_refused_before_the_job_starts(
    fake: Any, job: dict[str, Any], env: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError) as caught:
        recipe(**job).execute(SimEnv(**env))
    assert sentence in caught.value.message
    assert caught.value.hint
    assert fake.Simulation.started == []


def test_a_script_that_is_gone_by_now(here: Path) -> None:
    built = recipe()
    (here / "client.py").unlink()
    with pytest.raises(SpecError, match=r"client.py does not exist"):
        built.execute(SimEnv())


def test_a_missing_binary_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTEEL_BINARY", "/no/such/firesteel")
    with pytest.raises(SpecError, match="/no/such/firesteel"):
        recipe().execute(SimEnv())


def test_resume_starts_from_what_the_run_kept(fake: Any, here: Path) -> None:
    recipe(model=[1.0]).execute(SimEnv(), resume=True)
    spec, options = started(fake)
    kept = here / "firesteel-runs/fedavg/latest/models/initial.safetensors"
    assert spec["initial_model"] == str(kept) and options["resume"] is True
    recipe().execute(SimEnv(), resume=True)
    assert started(fake)[0].get("initial_model") is None


FAILURE = {
    "site": "site-2", "round": 1, "code": "raised", "phase": "train",
    "message": "ValueError: bad", "hint": "look at the data", "traceback": "Traceback…\n  line 3",
    "log_tail": ["last line"],
}  # fmt: skip


def test_a_failed_job_raises_with_all_there_is(fake: Any) -> None:
    fake.Simulation.outcome = {
        "status": "failed", "cause": "1 of 2 sites is left, 2 are needed", "run_dir": "/r",
        "job_id": "fedavg", "failures": [FAILURE],
    }  # fmt: skip
    with pytest.raises(JobFailed) as caught:
        recipe().execute(SimEnv())
    text = str(caught.value)
    for part in ("2 are needed", "site-2 (train of round 2): ValueError: bad", "line 3", "/r",
                 "hint: look at the data"):  # fmt: skip
        assert part in text
    assert caught.value.status == "failed" and caught.value.code == "raised"
    assert caught.value.failures[0]["site"] == "site-2"
    assert caught.value.run is not None and caught.value.run.get_result() == "/r"


def test_aborted_and_partial_ends(fake: Any) -> None:
    fake.Simulation.outcome = {"status": "aborted"}
    with pytest.raises(JobAborted):
        recipe().execute(SimEnv())
    fake.Simulation.outcome = {"status": "completed with 1 of 2 sites", "failures": [FAILURE]}
    run = recipe().execute(SimEnv())
    assert run.get_status() == "completed with 1 of 2 sites"
    assert run.failures[0]["site"] == "site-2"
    with pytest.raises(Incomplete):
        recipe().execute(SimEnv(), strict=True)


@pytest.mark.parametrize(
    ("outcome", "strict", "code"),
    [
        ({"status": "completed"}, True, 0),
        ({"status": "completed with 1 of 2 sites"}, False, 0),
        ({"status": "completed with 1 of 2 sites"}, True, 3),
        ({"status": "failed"}, False, 1),
    ],
)
def test_exit_codes(here: Path, outcome: dict[str, Any], strict: bool, code: int) -> None:
    tests, python = (str(p) for p in (__file__.rpartition("/")[0], sys.path[0]))
    (here / "job.py").write_text(
        f"import sys; sys.path[:0] = [{tests!r}, {str(python)!r}]\n"
        "import fake_native, firesteel\n"
        "sys.modules['firesteel._native'] = firesteel._native = fake_native\n"
        f"fake_native.Simulation.outcome = {outcome!r}\n"
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(train_script='client.py', min_clients=1)"
        f".execute(SimEnv(), strict={strict})\n"
    )
    done = subprocess.run([sys.executable, "job.py"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == (code != 0)


def test_ctrl_c_ends_the_job_first(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aborted = []

    class Slow(fake.Simulation):  # type: ignore[misc, name-defined]
        def wait(self, timeout: float) -> bool:
            if not aborted:
                raise KeyboardInterrupt
            return True

        def abort(self, reason: str) -> None:
            aborted.append(reason)

    monkeypatch.setattr(fake, "Simulation", Slow)
    with pytest.raises(KeyboardInterrupt):
        recipe().execute(SimEnv())
    assert aborted == ["Ctrl-C was pressed"]
    assert "press Ctrl-C again" in capsys.readouterr().err


def test_models_and_metrics_of_a_run(fake: Any, here: Path) -> None:
    models, metrics = here / "run/models", here / "run/metrics"
    models.mkdir(parents=True)
    metrics.mkdir()
    firesteel.save_model(models / "last.safetensors", {"w": np.ones(2)})
    (metrics / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    run = recipe(save_filename="FL.npz").execute(SimEnv())
    assert run.model()["w"].tolist() == [1, 1]
    assert [entry["round"] for entry in run.metrics()] == [0, 1]
    assert firesteel.load_model(models / "FL.npz")["w"].tolist() == [1, 1]
    with pytest.raises(SpecError, match="has no best model"):
        run.model("best")
    with pytest.raises(SpecError, match="`which` is 'first'"):
        run.model("first")


def test_a_failed_site_in_the_foreground_is_reported(
    fake: Any, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import firesteel.client as flare

    monkeypatch.setattr(flare, "_current", None)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    attach = here / "run/attach"
    attach.mkdir(parents=True)
    (attach / "site-1.json").write_text(json.dumps({"socket": "/s", "token": "t"}))
    (here / "client.py").write_text(
        "import sys\nassert __name__ == '__main__'\nassert sys.argv == [__file__, '--x']\n"
        "import beside\nimport firesteel.client as flare\n"
        "flare.init()\nraise KeyError('w')\n"
    )
    (here / "beside.py").write_text("")
    argv = list(sys.argv)
    recipe(train_args="--x").execute(SimEnv(debug="site-1"))
    assert fake.Bridge.last.endpoint == ("/s", "t", 0)
    (code, phase, message, text) = fake.Bridge.last.failures[0]
    assert (code, phase, message) == ("raised", "start", "KeyError: 'w'")
    assert "raise KeyError('w')" in text
    assert "KeyError" in capsys.readouterr().err
    assert sys.argv == argv and fake.Bridge.last.closed
    assert started(fake)[1]["debug"] == "site-1"
