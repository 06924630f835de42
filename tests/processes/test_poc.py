"""Deployments in processes on this machine: what users see of them, and what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from federation import BINARY, ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

HELLO = ROOT / "examples/hello-world/hello-numpy"

CLIENT = """
import sys, time
import numpy as np
import firesteel.client as flare
import helper

flare.init()
while flare.is_running():
    model = flare.receive()
    helper.pause(sys.argv[1:])
    flare.send(flare.FLModel(params={"w": model.params["w"] + 1}, metrics={"loss": 1.0}))
"""

HELPER = """
import time
def pause(words):
    for path in words[1:]:
        open(path, "w").close()
    time.sleep(float(words[0]) if words else 0)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a training script, in which nothing is left afterwards."""
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    # tempfile remembers what it found.
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "python"))
    for name in ("FIRESTEEL_WORKSPACE_ROOT", "FIRESTEEL_POC_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    import __main__

    monkeypatch.setattr(__main__, "__file__", str(tmp_path / "job.py"), raising=False)
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "helper.py").write_text(HELPER)
    yield tmp_path
    assert not list(temporary.glob("firesteel-poc-*")), "a folder was left"
    assert not processes(tmp_path), "processes were left"


def processes(place: Path) -> list[str]:
    """Command lines and environments of processes that have to do with a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            cwd = os.readlink(entry / "cwd")
        except OSError:
            continue
        if str(place) in line or cwd.startswith(str(place)):
            found.append(f"{entry.name} {line} in {cwd}")
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def recipe(**parameters: Any) -> Any:
    import numpy as np

    from firesteel.recipe import FedAvgRecipe

    given = {
        "name": "plus-one", "model": {"w": np.zeros(3)}, "train_script": "client.py",
        "min_clients": 2, "num_rounds": 3, "key_metric": "loss", **parameters,
    }  # fmt: skip
    return FedAvgRecipe(**given)


def poc(**parameters: Any) -> Any:
    from firesteel.recipe import PocEnv

    return PocEnv(**{"extra": {"login_timeout": 60}, **parameters})


def command(*words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [BINARY, *words], capture_output=True, text=True, timeout=60, check=False
    )
    if ok:
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done


def test_the_example_runs_unchanged(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, HELLO / "job.py", "--env", "poc"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed: " in done.stdout and "learned w" in done.stdout


def test_results_are_those_of_a_simulation(here: Path) -> None:
    from firesteel.recipe import SimEnv

    simulated = recipe().execute(SimEnv(num_clients=2, seed=1, extra={"console": "off"}))
    run = recipe().execute(poc())
    result = run.get_result()
    assert run.get_status() == "completed"
    assert (run.model()["w"] == 3).all()
    last = "models/last.safetensors"
    assert Path(result, last).read_bytes() == Path(simulated.get_result(), last).read_bytes()
    assert len(run.metrics()) == 3
    for part in ("job.json", "log.txt", "metrics/summary.json"):
        assert Path(result, part).exists(), part
    # Again, after the processes and their folder are gone.
    assert run.get_result() == result


def test_two_environments_and_two_jobs_at_once(here: Path) -> None:
    one, other = poc(clients=["lyon", "oslo"]), poc()
    runs = [
        recipe(name="a").execute(one),
        recipe(name="b").execute(one),
        recipe(name="c").execute(other),
    ]
    assert len({run.get_result() for run in runs}) == 3
    assert [run.get_status() for run in runs] == ["completed"] * 3


def test_a_job_that_fails_says_where_and_why(here: Path) -> None:
    from firesteel.errors import JobFailed

    (here / "client.py").write_text(CLIENT.replace("helper.pause", "helper.paws"))
    run = recipe().execute(poc())
    with pytest.raises(JobFailed) as failed:
        run.get_result()
    assert "has no attribute 'paws'" in str(failed.value)
    # The first failure is enough to end it.
    assert run.failures
    assert {failure["site"] for failure in run.failures} <= {"site-1", "site-2"}


def test_a_job_is_aborted(here: Path) -> None:
    from firesteel.errors import JobAborted

    env = poc()
    run = recipe(train_args="600").execute(env)
    until(lambda: "round" in run.get_status() or run.get_status() == "running", "it runs")
    run.abort()
    with pytest.raises(JobAborted):
        run.get_result()
    assert run.get_status() == "aborted"


def test_stopping_ends_what_runs(here: Path) -> None:
    from firesteel.errors import JobAborted

    env = poc()
    run = recipe(train_args="600").execute(env)
    kit = Path(env.start())
    port = int(json.loads((kit.parents[1] / "poc.json").read_text())["port"])
    assert listens(port)
    env.stop(clean_up=True)
    assert not listens(port)
    with pytest.raises(JobAborted):
        run.get_result()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_program_leaves_nothing(here: Path, end: signal.Signals) -> None:
    (here / "job.py").write_text(
        "import signal\nimport numpy as np\nfrom firesteel.recipe import FedAvgRecipe, PocEnv\n"
        # Whoever runs the tests in the background may have it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "recipe = FedAvgRecipe(name='x', model={'w': np.zeros(3)}, train_script='client.py',"
        f" train_args='600 {here}/trains', min_clients=2)\n"
        "run = recipe.execute(PocEnv())\nprint('started', flush=True)\nrun.get_result()\n"
    )
    with subprocess.Popen([sys.executable, "job.py"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"started\n"
        until((here / "trains").exists, "a trainer runs")
        program.send_signal(end)
        try:
            program.wait(60)
        finally:
            program.kill()
    until(lambda: not processes(here), f"everything ends: {processes(here)}")
    until(lambda: not list((here / "tmp").glob("firesteel-poc-*")), "the folder goes")


@pytest.mark.parametrize("scheme", ["tcp", "grpc", "http"])
def test_every_way_to_connect(here: Path, scheme: str) -> None:
    run = recipe(num_rounds=2).execute(poc(scheme=scheme))
    assert run.get_result() and run.get_status() == "completed"


@pytest.mark.parametrize("hierarchy", ["splice", "cache", "aggregate"])
def test_relays(here: Path, hierarchy: str) -> None:
    env = poc(num_clients=3, relays=["north", "south"])
    run = recipe(num_rounds=2, min_clients=3, hierarchy=hierarchy).execute(env)
    assert run.get_result() and run.get_status() == "completed"
    assert (run.model()["w"] == 2).all()


def test_data_and_files_reach_the_scripts(here: Path) -> None:
    for site in ("lyon", "oslo"):
        (here / f"{site}.txt").write_text(site)
    (here / "words").mkdir()
    (here / "words/hello.txt").write_text("hello")
    (here / "client.py").write_text(
        "from pathlib import Path\nimport numpy as np\nimport firesteel.client as flare\n"
        "flare.init()\n"
        "told = Path(flare.data('train')).read_text()\n"
        "assert told == flare.get_site_name(), told\n"
        "hello = (Path(__file__).parent / 'words/hello.txt').read_text()\n"
        "while flare.is_running():\n"
        "    model = flare.receive()\n"
        "    flare.send(flare.FLModel(params={'w': model.params['w'] + len(hello)}))\n"
    )
    env = poc(clients=["lyon", "oslo"], data={"place": "{site}.txt"})
    run = recipe(num_rounds=1, data={"train": "place"}, files=["words"]).execute(env)
    run.get_result()
    assert (run.model()["w"] == 5).all()


def test_an_installed_script_is_run_where_it_is_and_missed_by_name(here: Path) -> None:
    from firesteel.errors import JobFailed

    installed = here / "tmp/installed"
    installed.mkdir()
    for name in ("client.py", "helper.py"):
        (installed / name).write_text((here / name).read_text())
    import __main__

    __main__.__file__ = str(here / "jobs/job.py")
    env = poc()
    run = recipe(train_script=str(installed / "client.py"), num_rounds=1).execute(env)
    assert run.get_result()
    run = recipe(train_script="/opt/nowhere/client.py", num_rounds=1).execute(poc())
    with pytest.raises(JobFailed, match="/opt/nowhere/client.py"):
        run.get_result()


def test_the_commands(here: Path) -> None:
    at = ("--workspace", str(here / "poc"), "--json")
    made = json.loads(command("poc", "prepare", "-n", "2", "--python", sys.executable, *at).stdout)
    assert [one["name"] for one in made["services"]] == ["server", "site-1", "site-2"]
    assert command("poc", "prepare", *at, ok=False).returncode == 1
    try:
        started = json.loads(command("poc", "start", "--timeout", "60", *at).stdout)
        assert {one["state"] for one in started["services"]} == {"up"}
        from firesteel import Session
        from firesteel.recipe import ProdEnv

        with Session(started["admin"]) as session:
            until(lambda: len(session.get_connected_client_list()) == 2, "both sites connect")
            run = recipe().execute(ProdEnv(started["admin"]))
            assert run.get_result()
            assert session.list_jobs()[0]["job_id"] == run.get_job_id()
        command("poc", "stop", "-p", "site-2", *at)
        status = json.loads(command("poc", "status", *at).stdout)
        states = {one["name"]: one["state"] for one in status["services"]}
        assert states == {"server": "up", "site-1": "up", "site-2": "stopped"}
        command("poc", "start", "-p", "site-2", *at)
        status = json.loads(command("poc", "status", *at).stdout)
        assert {one["state"] for one in status["services"]} == {"up"}
        stopped = json.loads(command("poc", "stop", *at).stdout)
        assert stopped["status"] == "stopped"
        assert not listens(int(made["server"].rpartition(":")[2]))
        # What was done is there again after a start.
        command("poc", "start", "--timeout", "60", *at)
        with Session(made["admin"]) as session:
            assert session.get_job_status(run.get_job_id()) == "completed"
    finally:
        command("poc", "clean", *at)
    assert not (here / "poc").exists()
    assert json.loads(command("poc", "status", *at).stdout)["status"] == "not prepared"


def test_a_killed_keeper_takes_its_processes_along(here: Path) -> None:
    at = ("--workspace", str(here / "poc"), "--json")
    try:
        command("poc", "start", "--timeout", "60", *at)
        keeper = int((here / "poc/keeper.lock").read_text())
        os.kill(keeper, signal.SIGKILL)
        until(lambda: not processes(here / "poc"), "all processes end")
        assert json.loads(command("poc", "status", *at).stdout)["status"] == "stopped"
    finally:
        command("poc", "clean", *at)
