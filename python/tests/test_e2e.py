"""Whole federations: the real server, agents and trainers, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel
from firesteel.errors import Error, Incomplete, JobFailed, SpecError
from firesteel.recipe import FedAvgRecipe, Policy, Run, SimEnv

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e

# A machine under load takes its time; a hang is a failure all the same.
PATIENCE_S = 60.0

# Adds one to every param, in every round.
PLAIN = """
import firesteel.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    flare.send(flare.FLModel(
        params={k: v + 1 for k, v in model.params.items()},
        metrics={"accuracy": float(model.current_round)},
    ))
"""

# The same, with a line of its own at one site before the answer.
AT_SITE_2 = """
import os, sys, time
import numpy as np
import firesteel.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    params = {{k: v + 1 for k, v in model.params.items()}}
    if flare.get_site_name() == "site-2":
        {line}
    flare.send(flare.FLModel(params=params))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # What this test starts can be told from what others run.
    monkeypatch.setenv("FIRESTEEL_TEST_MARK", str(tmp_path))
    return tmp_path


@pytest.fixture
def federate(here: Path) -> Callable[..., Run]:
    """Writes a script and federates it."""

    def go(
        script: str = PLAIN,
        *,
        env: dict[str, Any] | None = None,
        resume: bool = False,
        strict: bool = False,
        **parameters: Any,
    ) -> Run:
        (here / "client.py").write_text(script)
        given: dict[str, Any] = {
            "name": "test", "train_script": "client.py", "min_clients": 2,
            "model": {"w": np.zeros(3, np.float32)}, **parameters,
        }  # fmt: skip
        recipe = FedAvgRecipe(**given)
        settings = {"num_clients": 2, "extra": {"console": "off"}, **(env or {})}
        return recipe.execute(SimEnv(**settings), resume=resume, strict=strict)

    return go


def wait_for(what: Callable[[], Any], *, seconds: float = PATIENCE_S) -> Any:
    """What a condition gives, once it holds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"did not happen within {seconds} s")


def ours(mark: Path) -> list[int]:
    """Processes other than this one that carry a test's mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"FIRESTEEL_TEST_MARK={mark}".encode() in environ and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def no_orphans(here: Path) -> Any:
    yield
    wait_for(lambda: not ours(here), seconds=20)
    half = [p for p in here.rglob("*") if p.suffix in (".new", ".part") or ".tmp" in p.name]
    assert half == []


def log_of(run: Run) -> str:
    return (Path(run.get_result() or "") / "log.txt").read_text()


# -- what works ---------------------------------------------------------------


def test_a_job_runs_and_leaves_models_metrics_and_logs(federate: Any, here: Path) -> None:
    run = federate(num_rounds=3)
    assert run.get_status() == "completed"
    folder = Path(run.get_result() or "")
    assert folder.parent == here / "firesteel-runs" / "test"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run.get_job_id()
    assert run.model()["w"].tolist() == [3, 3, 3]
    assert run.model("initial")["w"].tolist() == [0, 0, 0]
    # Metrics of round 2 describe what round 2 was handed.
    assert run.model("best")["w"].tolist() == [2, 2, 2]
    assert [entry["round"] for entry in run.metrics()] == [0, 1, 2]
    assert run.failures == []
    for name in ("log.txt", "log.json", "log_fl.txt"):
        assert (folder / name).is_file(), name
    errors = folder / "error_log.txt"
    assert not errors.exists() or errors.read_text() == ""
    assert list((here / "firesteel-runs").glob(".initial-*")) == []


def test_the_ten_lines_without_a_main_guard(here: Path) -> None:
    (here / "client.py").write_text(PLAIN)
    code = (
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "recipe = FedAvgRecipe(name='ten', model=[0.0], train_script='client.py',\n"
        "                      min_clients=2, num_rounds=2)\n"
        "run = recipe.execute(SimEnv(num_clients=2))\n"
        "print(run.get_status(), run.get_result())\n"
    )
    # As a notebook has it: no file, and a namespace of its own.
    notebook = f"exec(compile({code!r}, '<cell 1>', 'exec'), {{}})"
    for args, stdin in ((["-c", notebook], None), (["-"], code)):
        done = subprocess.run(
            [sys.executable, *args], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("completed /")


def test_more_sites_than_workers(federate: Any) -> None:
    for settings in ({"num_workers": 1}, {"num_workers": 2}):
        run = federate(min_clients=5, num_rounds=2, env={"num_clients": 5, **settings})
        assert run.model()["w"].tolist() == [2, 2, 2]


def test_a_process_per_task(federate: Any, here: Path) -> None:
    script = PLAIN + f"open({str(here / 'ends')!r}, 'a').write('x')\n"
    federate(script, launch_once=False, num_rounds=3)
    assert (here / "ends").read_text() == "x" * 6
    (here / "ends").unlink()
    federate(script, launch_once=True, num_rounds=3)
    assert (here / "ends").read_text() == "x" * 2


@pytest.mark.parametrize("command", ["python3 -u", f"env WORKERS=1 {sys.executable}"])
def test_external_processes(federate: Any, command: str) -> None:
    run = federate(launch_external_process=True, train_args=["a b"], command=command)
    assert run.model()["w"].tolist() == [2, 2, 2]


def test_large_models_travel_as_files(federate: Any) -> None:
    big = np.arange(200_000.0)
    run = federate(model={"big": big, "n": np.array(1)}, num_rounds=2)
    assert np.array_equal(run.model()["big"], big + 2)
    assert run.model()["n"] == 3


def test_differences(federate: Any) -> None:
    run = federate(params_transfer_type="DIFF", num_rounds=3)
    assert run.model()["w"].tolist() == [3, 3, 3]


def test_trees_and_ties_come_through(federate: Any) -> None:
    script = """
        import numpy as np
        import firesteel.client as flare
        flare.init()
        while flare.is_running():
            p = flare.receive().params
            assert p["layers"][0] is p["tied"], "the tie was lost"
            assert p["name"] == "net" and p["flags"] == (True, None)
            p["tied"] += 1
            flare.send(flare.FLModel(params=p))
    """
    weight = np.ones(2)
    tree = {"layers": [weight], "tied": weight, "name": "net", "flags": (True, None)}
    run = federate(textwrap.dedent(script), model=tree)
    back = run.model()
    assert back["tied"].tolist() == [3, 3] and back["layers"][0] is back["tied"]
    assert back["flags"] == (True, None)


def test_the_first_round_can_make_the_model(federate: Any) -> None:
    script = PLAIN.replace("model.params.items()", "(model.params or {'w': np.zeros(2)}).items()")
    run = federate("import numpy as np" + script, model=None, num_rounds=2)
    assert run.model()["w"].tolist() == [2, 2]


def test_weights_medians_and_excluded_tensors(federate: Any) -> None:
    script = """
        import numpy as np
        import firesteel.client as flare
        flare.init()
        n = int(flare.get_site_name()[-1])
        while flare.is_running():
            p = flare.receive().params
            flare.send(flare.FLModel(params={"w": p["w"] + n, "kept": p["kept"] + n},
                                     meta={"NUM_STEPS_CURRENT_ROUND": n}))
    """
    script = textwrap.dedent(script)
    start = {"w": np.zeros(1), "kept": np.zeros(1)}
    more = {"model": start, "min_clients": 3, "num_rounds": 1, "env": {"num_clients": 3}}
    run = federate(script, exclude_vars="^kept$", **more)
    assert run.model()["w"][0] == pytest.approx((1 * 1 + 2 * 2 + 3 * 3) / 6)
    assert run.model()["kept"][0] == 0
    run = federate(script, aggregator="median", **more)
    assert run.model()["w"][0] == 2
    run = federate(script, aggregation_weights={"site-3": 4}, **more)
    assert run.model()["w"][0] == pytest.approx((1 * 1 + 2 * 2 + 12 * 3) / 15)


def test_stopping_early(federate: Any) -> None:
    run = federate(num_rounds=50, stop_cond="accuracy >= 2")
    assert len(run.metrics()) == 3


def test_data_and_arguments_by_site(federate: Any, here: Path) -> None:
    script = """
        import sys
        import numpy as np
        import firesteel.client as flare
        flare.init()
        while flare.is_running():
            p = flare.receive().params
            flare.send(flare.FLModel(
                params={"w": p["w"] + np.load(flare.data("train")) * int(sys.argv[1])}))
    """
    for n in (1, 2):
        np.save(here / f"{n}.npy", np.float32(n))
    run = federate(
        textwrap.dedent(script), data={"train": "numbers"}, train_args="10", num_rounds=1,
        site_config={"site-2": {"train_args": "100"}},
        env={"data": {"site-1": {"numbers": "1.npy"}, "site-2": {"numbers": "2.npy"}}},
    )  # fmt: skip
    assert run.model()["w"][0] == (1 * 10 + 2 * 100) / 2


def test_state_stays_at_the_site(federate: Any) -> None:
    script = """
        import numpy as np
        import firesteel.client as flare
        flare.init()
        while flare.is_running():
            model = flare.receive()
            seen = flare.state.get("seen", np.zeros(1)) + 1
            flare.state["seen"] = seen
            flare.send(flare.FLModel(params=model.params, metrics={"seen": seen[0]}))
    """
    for env in ({"num_workers": 1, "num_clients": 3}, {"num_clients": 2}):
        run = federate(textwrap.dedent(script), num_rounds=3, env=env)
        assert [entry["metrics"]["seen"] for entry in run.metrics()] == [1, 2, 3]


def test_a_seed_makes_a_run_repeatable_bit_for_bit(federate: Any) -> None:
    script = """
        import random
        import numpy as np
        noise = np.random.randn(3)
        import firesteel.client as flare
        flare.init()
        while flare.is_running():
            p = flare.receive().params
            w = p["w"] + np.random.randn(3).astype("f4") + random.random()
            flare.send(flare.FLModel(params={"w": w.astype("f4")}, metrics={"x": np.random.rand()}))
    """
    script = textwrap.dedent(script)

    def model(**env: Any) -> bytes:
        run = federate(script, num_rounds=3, min_clients=4, env={"num_clients": 4, **env})
        return Path(run.model_path()).read_bytes()

    first = model(seed=5)
    assert first == model(seed=5)
    assert first == model(seed=5, num_workers=1)
    assert first != model(seed=6)


def test_the_output_of_scripts_is_in_the_logs(federate: Any) -> None:
    script = PLAIN.replace(
        "flare.init()",
        "flare.init()\nimport logging, sys\n"
        "print('said to stdout')\nprint('said to stderr', file=sys.stderr)\n"
        "logging.warning('said to the log')\n",
    )
    run = federate(script)
    text = log_of(run)
    for words in ("said to stdout", "said to stderr", "said to the log"):
        assert text.count(words) == 2, text
    lines = (Path(run.get_result() or "") / "log.json").read_text().splitlines()
    said = [json.loads(line) for line in lines if "said to the log" in line]
    assert said and all("custom.client" in json.dumps(entry) for entry in said)


def test_the_models_one_asks_for_are_written_too(federate: Any) -> None:
    run = federate(save_filename="last.npz", best_model_filename="best.npz")
    folder = Path(run.get_result() or "") / "models"
    assert firesteel.load_model(folder / "last.npz")["w"].tolist() == [2, 2, 2]
    assert firesteel.load_model(folder / "best.npz")["w"].tolist() == [1, 1, 1]


def test_resume_goes_on_from_the_last_committed_round(federate: Any, here: Path) -> None:
    script = PLAIN.replace(
        "    flare.send",
        "    if model.current_round == 2 and not __import__('os').path.exists('mended'):\n"
        "        raise RuntimeError('broken for now')\n    flare.send",
    )
    more = {"num_rounds": 4, "policy": Policy(on_failure="exclude")}
    with pytest.raises(JobFailed, match="broken for now"):
        federate(script, **more)
    (here / "mended").touch()
    run = federate(script, resume=True, **more)
    assert run.get_status().startswith("completed")
    assert run.model()["w"].tolist() == [4, 4, 4]
    assert [entry["round"] for entry in run.metrics()] == [0, 1, 2, 3]
    with pytest.raises(Error):
        federate(script, resume=True, name="never-ran", **more)


def test_debug_runs_one_site_here(
    federate: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[str] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stops.append("here"))
    script = PLAIN.replace(
        "    flare.send", "    if __import__('os').getpid() == PID: breakpoint()\n    flare.send"
    )
    script = f"PID = {os.getpid()}\n" + script
    run = federate(script, num_rounds=3, env={"debug": "site-2"})
    assert stops == ["here"] * 3
    assert run.model()["w"].tolist() == [3, 3, 3]


def test_a_breakpoint_is_skipped_where_nobody_can_answer(federate: Any) -> None:
    script = PLAIN.replace("    flare.send", "    breakpoint()\n    flare.send")
    run = federate(script, num_rounds=2)
    assert run.get_status() == "completed"
    assert "breakpoint() at client.py:6 is skipped here" in log_of(run)


def test_an_exception_in_the_foreground_is_its_sites_failure(federate: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        federate(AT_SITE_2.format(line="raise KeyError('gone')"), env={"debug": "site-2"})
    assert caught.value.failures[0]["site"] == "site-2"
    assert "gone" in str(caught.value)


def test_trainers_attach_themselves(here: Path) -> None:
    (here / "client.py").write_text(PLAIN)
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "run = FedAvgRecipe(name='by-hand', model=[0.0], train_script='client.py',\n"
        "    min_clients=2, execution_mode='attach').execute(SimEnv(num_clients=2))\n"
        "print(run.get_status())\n"
    )
    job = subprocess.Popen([sys.executable, "job.py"], stdout=subprocess.PIPE, text=True)
    try:
        folder = here / "firesteel-runs/by-hand/latest/attach"
        trainers = []
        for site in ("site-1", "site-2"):
            profile = wait_for(lambda site=site: next(folder.glob(f"{site}.json"), None))
            assert profile.stat().st_mode & 0o077 == 0
            env = {**os.environ, "FIRESTEEL_ATTACH": str(profile)}
            trainers.append(subprocess.Popen([sys.executable, "client.py"], env=env))
        said, _ = job.communicate(timeout=PATIENCE_S)
        assert said == "completed\n"
        assert [trainer.wait(PATIENCE_S) for trainer in trainers] == [0, 0]
    finally:
        job.kill()


def test_two_runs_at_once_in_one_workspace(here: Path) -> None:
    (here / "client.py").write_text(PLAIN)
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "run = FedAvgRecipe(name='twin', model=[0.0], train_script='client.py',\n"
        "    min_clients=2, num_rounds=20).execute(SimEnv(num_clients=2))\n"
        "print(run.get_result())\n"
    )
    jobs = [
        subprocess.Popen([sys.executable, "job.py"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {job.communicate(timeout=PATIENCE_S)[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(folders) == 3


# -- what fails, and what it says ---------------------------------------------

FAILURES = [
    ("raises", "raise ValueError('bad pixel')", "raised", ["ValueError: bad pixel", "client.py"]),
    ("exits", "print('giving up'); sys.exit(7)", "exited", ["7", "giving up"]),
    ("exits with 0", "os._exit(0)", "exited", []),
    ("segfaults", "os.kill(os.getpid(), 11)", "signaled", ["SIGSEGV"]),
    ("is killed", "os.kill(os.getpid(), 9)", "", ["SIGKILL"]),
    ("sends NaN", "params['w'][1] = np.nan", "not-finite", ["`w`", "NaN"]),
    ("sends Inf", "params['w'][1] = np.inf", "not-finite", ["`w`", "Inf"]),
    ("sends other shapes", "params['w'] = np.zeros(4, 'f4')", "shape-mismatch", ["`w`", "4", "3"]),
    ("sends other dtypes", "params['w'] = np.zeros(3, 'i4')", "dtype-mismatch", ["`w`"]),
    ("sends other keys", "params = {'v': np.zeros(3, 'f4')}", "key-mismatch", ["`v`"]),
    ("sends objects", "params['w'] = object()", "", ["params['w']", "object"]),
    ("sends nothing", "params = None", "misuse", ["neither params nor metrics"]),
]


@pytest.mark.parametrize(
    ("line", "code", "words"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES]
)
def test_a_failing_site_is_named_with_cause_and_phase(
    federate: Any, line: str, code: str, words: list[str]
) -> None:
    with pytest.raises(JobFailed) as caught:
        federate(AT_SITE_2.format(line=line), num_rounds=3)
    error = caught.value
    assert error.status == "failed" and error.run is not None
    failure = next(f for f in error.failures if f["site"] == "site-2")
    assert failure["phase"] in ("train", "send", "verify")
    if code:
        assert failure["code"] == code
    text = str(error)
    assert "site-2" in text
    for word in words:
        assert word in text, text
    assert "site-2" in log_of(error.run)
    assert "site-2" in (Path(error.run.get_result() or "") / "error_log.txt").read_text()


@pytest.fixture
def memory_cgroup() -> Any:
    """A control group of 300 MiB; the function that moves a process into it."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root = v1 if v1.is_dir() else v2
    group = root / f"firesteel-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if root is v1 else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(300 << 20))
    except OSError as error:
        # A workstation may forbid it; the machine that decides over a change may not.
        assert not os.environ.get("CI"), f"no memory control group can be made: {error}"
        pytest.skip(f"no memory control group can be made here: {error}")
    yield lambda pid: (group / "cgroup.procs").write_text(str(pid))
    wait_for(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_trainer_that_runs_out_of_memory(here: Path, memory_cgroup: Any) -> None:
    hog = "hog = [np.ones(1 << 22) for _ in range(64)]"
    (here / "client.py").write_text(AT_SITE_2.format(line=hog))
    (here / "job.py").write_text(
        "import sys\n"
        "import numpy as np\n"
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "recipe = FedAvgRecipe(name='oom', model={'w': np.zeros(3)}, train_script='client.py',\n"
        "    min_clients=1, num_rounds=2)\n"
        "sys.stdin.readline()\n"
        "run = recipe.execute(SimEnv(num_clients=2, extra={'console': 'off'}))\n"
        "print(run.get_status(), run.failures[0]['site'], run.failures[0]['code'])\n"
        "print(run.failures[0]['message'], run.failures[0]['hint'])\n"
    )
    job = subprocess.Popen(
        [sys.executable, "job.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    memory_cgroup(job.pid)
    told, _ = job.communicate("go\n", timeout=PATIENCE_S)
    assert "completed with 1 of 2 sites site-2 out-of-memory" in told
    assert "want of memory" in told and "smaller batches" in told


def test_a_killed_job_resumes_to_the_same_bits(here: Path) -> None:
    (here / "client.py").write_text(
        "import os, sys, time\n"
        "import numpy as np\n"
        "import firesteel.client as flare\n"
        "flare.init()\n"
        "while flare.is_running():\n"
        "    model = flare.receive()\n"
        "    if model.current_round == 3 and os.path.exists('hang'):\n"
        "        open('hanging', 'w').close()\n"
        "        time.sleep(600)\n"
        "    flare.state['rounds'] = flare.state.get('rounds', 0) + 1\n"
        "    noise = np.random.normal(size=3) + flare.state['rounds']\n"
        "    flare.send(flare.FLModel(params={'w': model.params['w'] + noise}))\n"
    )
    (here / "job.py").write_text(
        "import sys\n"
        "import numpy as np\n"
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "recipe = FedAvgRecipe(name=sys.argv[1], model={'w': np.zeros(3)},\n"
        "    train_script='client.py', min_clients=3, num_rounds=6)\n"
        "run = recipe.execute(SimEnv(num_clients=3, seed=7, extra={'console': 'off'}),\n"
        "    resume=len(sys.argv) > 2)\n"
        "print(run.model()['w'].tobytes().hex(), len(run.metrics()))\n"
    )

    def job(*args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "job.py", *args], stdout=subprocess.PIPE, text=True
        )

    undisturbed, _ = job("twin").communicate(timeout=PATIENCE_S)
    (here / "hang").touch()
    killed = job("test")
    wait_for((here / "hanging").exists)
    killed.kill()
    killed.communicate()
    wait_for(lambda: not ours(here), seconds=20)
    (here / "hang").unlink()
    resumed, _ = job("test", "resume").communicate(timeout=PATIENCE_S)
    assert resumed == undisturbed
    assert resumed.split()[1] == "6"


def test_an_exception_after_the_answer_is_told_and_fails_no_round(federate: Any) -> None:
    run = federate(AT_SITE_2.format(line="flare.send(flare.FLModel(params=params))"), num_rounds=2)
    assert run.model()["w"].tolist() == [2, 2, 2]
    assert "called twice for one task" in log_of(run)


def test_a_failed_job_names_the_run_and_the_lines_of_the_trainer(federate: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        federate(AT_SITE_2.format(line="raise ValueError('bad pixel')"))
    text = str(caught.value)
    assert "raise ValueError('bad pixel')" in text
    assert "Traceback" in text and "_warm" not in text and "runpy" not in text
    assert str(caught.value.run.get_result()) in text


def test_a_trainer_that_hangs_past_its_deadline(federate: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        federate(AT_SITE_2.format(line="time.sleep(600)"), policy=Policy(task_deadline=1.0))
    assert caught.value.failures[0]["code"] in ("task-deadline", "round-deadline")


def test_a_trainer_that_never_reports(federate: Any) -> None:
    with pytest.raises(JobFailed) as caught:
        federate("import time\ntime.sleep(600)\n", env={"durations": {"trainer_start": 1.0}})
    assert caught.value.failures[0]["code"] == "never-started"
    assert caught.value.failures[0]["phase"] == "start"
    assert "flare.init()" in str(caught.value)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import firesteel.client as flare\nflare.init()\n", "never-received"),
        ("print('nothing to do')\n", None),
        ("import no_such_module\n", None),
        ("def f(:\n", None),
    ],
)
def test_scripts_that_end_before_their_first_task(
    federate: Any, script: str, code: str | None
) -> None:
    with pytest.raises(JobFailed) as caught:
        federate(script)
    failure = caught.value.failures[0]
    if code:
        assert failure["code"] == code
    assert failure["phase"] == "start"
    if "no_such_module" in script:
        assert "No module named 'no_such_module'" in str(caught.value)
    if "def f" in script:
        assert "SyntaxError" in str(caught.value)


def test_a_script_that_is_not_there(federate: Any) -> None:
    with pytest.raises(SpecError, match=r"clinet.py does not exist"):
        federate(train_script="clinet.py")


def test_send_before_receive(federate: Any) -> None:
    script = "import firesteel.client as flare\nflare.init()\nflare.send(flare.FLModel(params={}))"
    with pytest.raises(JobFailed, match=r"called before flare.receive"):
        federate(script)


def test_with_quorum_the_job_completes_and_says_without_whom(federate: Any, here: Path) -> None:
    script = AT_SITE_2.format(line="raise ValueError('bad pixel')")
    more = {"min_clients": 2, "num_rounds": 2, "env": {"num_clients": 3}}
    run = federate(script, **more)
    assert run.get_status() == "completed with 2 of 3 sites"
    assert run.failures[0]["site"] == "site-2"
    assert run.model()["w"].tolist() == [2, 2, 2]
    with pytest.raises(Incomplete) as caught:
        federate(script, strict=True, **more)
    assert caught.value.run.get_status() == "completed with 2 of 3 sites"


@pytest.mark.parametrize(("strict", "code"), [(False, 0), (True, 3)])
def test_exit_codes_with_quorum(here: Path, strict: bool, code: int) -> None:
    (here / "client.py").write_text(AT_SITE_2.format(line="raise ValueError('bad pixel')"))
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(model=[0.0, 1.0], train_script='client.py', min_clients=2)"
        f".execute(SimEnv(num_clients=3), strict={strict})\n"
    )
    done = subprocess.run(
        [sys.executable, "job.py"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == code, done.stderr
    assert "site-2" in done.stderr


def test_without_quorum_the_exit_code_is_1(here: Path) -> None:
    (here / "client.py").write_text(AT_SITE_2.format(line="raise ValueError('bad pixel')"))
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(model=[0.0], train_script='client.py', min_clients=2)"
        ".execute(SimEnv(num_clients=2))\n"
    )
    done = subprocess.run(
        [sys.executable, "job.py"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert "JobFailed" in done.stderr and "bad pixel" in done.stderr


def test_ctrl_c_ends_everything_and_keeps_what_is_done(here: Path) -> None:
    (here / "client.py").write_text(
        PLAIN.replace("    flare.send", "    __import__('time').sleep(0.05)\n    flare.send")
    )
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(name='long', model=[0.0], train_script='client.py', min_clients=2,\n"
        "    num_rounds=100000).execute(SimEnv(num_clients=2))\n"
    )
    job = subprocess.Popen(
        [sys.executable, "job.py"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        latest = here / "firesteel-runs/long/latest"
        wait_for(lambda: (latest / "models/last.safetensors").exists())
        # As a terminal does: to the whole group.
        os.killpg(job.pid, signal.SIGINT)
        _, said = job.communicate(timeout=PATIENCE_S)
    finally:
        job.kill()
    assert job.returncode in (-signal.SIGINT, 130, 1), said
    assert "KeyboardInterrupt" in said
    assert json.loads((latest / "metrics/summary.json").read_text())["status"] == "aborted"
    assert firesteel.load_model(latest / "models/last.safetensors")["numpy_key"][0] >= 1


def test_killing_the_program_leaves_no_process(here: Path) -> None:
    (here / "client.py").write_text(
        PLAIN.replace("    flare.send", "    __import__('time').sleep(600)\n    flare.send")
    )
    (here / "job.py").write_text(
        "from firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(name='killed', model=[0.0], train_script='client.py', min_clients=2)"
        ".execute(SimEnv(num_clients=2))\n"
    )
    job = subprocess.Popen([sys.executable, "job.py"], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(ours(here)) >= 4)
    job.kill()
    job.wait()
    wait_for(lambda: not ours(here), seconds=20)


def test_a_full_disk_is_said_before_the_job_starts(here: Path) -> None:
    (here / "client.py").write_text(PLAIN)
    (here / "job.py").write_text(
        "import numpy as np\nfrom firesteel.recipe import FedAvgRecipe, SimEnv\n"
        "FedAvgRecipe(model=np.zeros(1_000_000), train_script='client.py', min_clients=2)"
        ".execute(SimEnv(num_clients=2, workspace_root='small'))\n"
    )
    (here / "small").mkdir()
    mount = f"mount -t tmpfs -o size=12m none small && {sys.executable} job.py"
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no one make a mount of their own")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert "disk" in done.stderr or "free" in done.stderr, done.stderr
    assert "hint:" in done.stderr


# -- frameworks ---------------------------------------------------------------


@pytest.mark.torch
def test_a_torch_job(federate: Any) -> None:
    import torch

    script = """
        import torch
        import firesteel.client as flare
        flare.init()
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        while flare.is_running():
            model = flare.receive()
            net.load_state_dict(model.params)
            net(torch.randn(8, 3))
            with torch.no_grad():
                net[0].weight += 1
            flare.send(flare.FLModel(params=net.state_dict(), metrics={"loss": torch.tensor(0.5)}))
    """
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    before = net[0].weight.detach().clone()
    for transfer in ("FULL", "DIFF"):
        run = federate(
            textwrap.dedent(script), model=net, params_transfer_type=transfer,
            save_filename="FL_global_model.pt",
        )  # fmt: skip
        back = run.model()
        assert torch.allclose(back["0.weight"], before + 2)
        assert back["1.num_batches_tracked"] == 2
        path = Path(run.get_result() or "") / "models/FL_global_model.pt"
        net.load_state_dict(torch.load(path, weights_only=True))
        net[0].weight.data.copy_(before)
        net[1].num_batches_tracked.zero_()


@pytest.mark.torch
def test_torch_runs_are_repeatable(federate: Any) -> None:
    script = """
        import torch
        import firesteel.client as flare
        flare.init()
        while flare.is_running():
            p = flare.receive().params
            flare.send(flare.FLModel(params={"w": p["w"] + torch.randn(3)}))
    """
    import torch

    def model() -> bytes:
        run = federate(textwrap.dedent(script), model={"w": torch.zeros(3)}, env={"seed": 1})
        return Path(run.model_path()).read_bytes()

    assert model() == model()


@pytest.mark.torch
def test_torchrun(federate: Any) -> None:
    script = """
        import torch, torch.distributed as dist
        import firesteel.client as flare
        dist.init_process_group("gloo")
        flare.init()
        rank = dist.get_rank()
        while flare.is_running():
            model = flare.receive()
            w = model.params["w"] + rank + 1
            dist.all_reduce(w)
            if rank == 0:
                flare.send(flare.FLModel(params={"w": w}))
        dist.destroy_process_group()
    """
    import torch

    for size in (3, 50_000):
        run = federate(
            textwrap.dedent(script), model={"w": torch.zeros(size)}, min_clients=1, num_rounds=2,
            launch_external_process=True,
            command=f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2",
            env={"num_clients": 1},
        )  # fmt: skip
        # (0+1)+(0+2) = 3, then (3+1)+(3+2) = 9.
        assert run.model()["w"].unique().tolist() == [9]


@pytest.mark.tracking
def test_tensorboard_reads_what_scripts_log(federate: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from firesteel.recipe import add_experiment_tracking

    script = """
        import firesteel.client as flare
        from firesteel.client.tracking import SummaryWriter
        flare.init()
        writer = SummaryWriter()
        while flare.is_running():
            model = flare.receive()
            for step in range(3):
                writer.add_scalar("train/loss", 1 / (step + 1), model.current_round * 3 + step)
            flare.log("note", "hello", flare.AnalyticsDataType.TEXT)
            flare.send(flare.FLModel(params=model.params))
    """
    here = Path.cwd()
    (here / "client.py").write_text(textwrap.dedent(script))
    recipe = FedAvgRecipe(
        name="tb", model=np.zeros(1), train_script="client.py", min_clients=2, num_rounds=2
    )
    add_experiment_tracking(recipe, tracking_type="tensorboard")
    run = recipe.execute(SimEnv(num_clients=2))
    for site in ("site-1", "site-2"):
        events = EventAccumulator(str(Path(run.get_result() or "") / "tb_events" / site))
        events.Reload()
        scalars = events.Scalars("train/loss")
        assert [event.step for event in scalars] == [0, 1, 2, 3, 4, 5]
        assert scalars[1].value == pytest.approx(0.5)
