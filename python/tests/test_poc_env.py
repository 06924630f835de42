"""`PocEnv` against a fake keeper: when processes start and end, and what is asked of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firesteel.errors import Error, JobAborted, SpecError
from firesteel.recipe import FedAvgRecipe, PocEnv

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any) -> Callable[[], list[Any]]:
    """What each keeper was told."""
    keeper = tmp_path / "firesteel"
    keeper.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_keeper.py"} "$@"\n')
    keeper.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRESTEEL_BINARY", str(keeper))
    monkeypatch.setenv("FAKE_KEEPER_TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("FIRESTEEL_WORKSPACE_ROOT", raising=False)
    (tmp_path / "client.py").write_text("")

    def read() -> list[Any]:
        path = tmp_path / "told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def recipe(**parameters: Any) -> FedAvgRecipe:
    given = {
        "name": "digits", "model": {"w": np.zeros(3)}, "train_script": "client.py",
        "min_clients": 1, **parameters,
    }  # fmt: skip
    return FedAvgRecipe(**given)


def gone(env: PocEnv) -> bool:
    return env._keeper is None


def test_the_result_ends_the_processes_and_stays(told: Any, tmp_path: Path) -> None:
    env = PocEnv(num_clients=3)
    run = recipe().execute(env)
    assert list(told()[0]["sites"]) == ["site-1", "site-2", "site-3"]
    result = run.get_result()
    assert gone(env)
    assert not Path(told()[0]["folder"]).exists()
    assert run.get_result() == result and Path(result, "models/last.safetensors").exists()
    env.stop(clean_up=True)
    assert run.get_result() == result
    assert run.get_status() == "completed"


def test_processes_stay_until_the_last_run(told: Any) -> None:
    env = PocEnv()
    first, second = recipe().execute(env), recipe(name="more").execute(env)
    first.get_result()
    assert not gone(env)
    second.get_result()
    assert gone(env) and len(told()) == 1
    third = recipe().execute(env)
    assert third.get_result() and len(told()) == 2


def test_two_environments_at_once(told: Any) -> None:
    one, other = PocEnv(clients=["lyon"]), PocEnv(clients=["oslo"])
    runs = [recipe().execute(one), recipe().execute(other)]
    assert len({entry["folder"] for entry in told()}) == 2
    assert all(run.get_result() for run in runs)


def test_a_run_that_is_stopped_is_aborted_and_its_files_are_fetched(told: Any) -> None:
    env = PocEnv(clients=["slow"])
    run = recipe().execute(env)
    assert run.get_status() == "round 1 of 3"
    env.stop()
    assert run.get_status() == "aborted"
    with pytest.raises(JobAborted):
        run.get_result()
    assert run.folder is not None and Path(run.folder, "job.json").exists()  # type: ignore[attr-defined]


def test_a_workspace_of_ones_own_is_removed_when_asked(told: Any, tmp_path: Path) -> None:
    env = PocEnv(workspace=tmp_path / "poc")
    recipe().execute(env).get_result(clean_up=False)
    assert (tmp_path / "poc/kits").exists()
    recipe().execute(env).get_result()
    assert not (tmp_path / "poc").exists()


def test_what_the_keeper_is_told(told: Any, tmp_path: Path) -> None:
    env = PocEnv(
        clients=["lyon", "oslo"], gpu_ids=[0, 1, 2], relays=["north"], scheme="http",
        data={"points": "{site}.npz"},
    )  # fmt: skip
    recipe(data={"train": "points"}).execute(env).get_result()
    said = told()[0]
    assert said["sites"]["lyon"] == {
        "data": {"points": str(tmp_path / "lyon.npz")}, "gpus": ["0", "2"]
    }  # fmt: skip
    assert said["sites"]["oslo"]["gpus"] == ["1"]
    assert (said["relays"], said["scheme"]) == (["north"], "http")
    assert said["python"] == sys.executable


def test_what_does_not_start_says_why(told: Any) -> None:
    env = PocEnv(clients=["broken"])
    with pytest.raises(Error, match="broken has ended\nhint: look"):
        recipe().execute(env)
    assert gone(env)


@pytest.mark.parametrize(("change", "said"), [
    ({"num_clients": 0}, "`num_clients` is 0"),
    ({"clients": ["a", "a"]}, "names 'a' twice"),
    ({"gpu_ids": "0,1"}, "`gpu_ids` is '0,1'"),
    ({"use_he": True}, "`use_he` is True"),
    ({"docker_image": "x"}, "`docker_image` is 'x'"),
    ({"scheme": "https"}, "`scheme` is 'https'"),
    ({"relays": "north"}, "`relays` is 'north'"),
    ({"project_conf_path": "none.yml"}, "there is no file"),
    ({"study": "x"}, "`study` is 'x'"),
])  # fmt: skip
def test_what_cannot_work_is_refused_by_name(told: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        PocEnv(**change)


def test_data_that_a_site_lacks_is_named_before_anything_starts(told: Any) -> None:
    with pytest.raises(SpecError, match="site-1 has no data named 'points'.*it has: 'digits'"):
        recipe(data={"train": "points"}).execute(PocEnv(data={"digits": "x.npz"}))
    assert not told()


PROGRAM = """
import sys, numpy as np
sys.path.insert(0, {tests!r})
import fake_native
sys.modules["firesteel._native"] = fake_native
from firesteel.recipe import FedAvgRecipe, PocEnv
recipe = FedAvgRecipe(name="digits", model={{"w": np.zeros(3)}}, train_script="client.py", min_clients=1)
run = recipe.execute(PocEnv())
{rest}
"""


@pytest.mark.parametrize(("rest", "code", "result"), [
    ("", 0, True),
    ("raise RuntimeError('x')", 1, False),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, False),
])  # fmt: skip
def test_a_program_that_ends_takes_the_processes_with_it(
    told: Any, tmp_path: Path, rest: str, code: int, result: bool
) -> None:
    (tmp_path / "job.py").write_text(PROGRAM.format(tests=str(HERE), rest=rest))
    done = subprocess.run([sys.executable, "job.py"], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == code
    assert list(tmp_path.glob("firesteel-runs/digits/job-*")) != [] if result else True
    deadline = time.monotonic() + 30
    while Path(told()[0]["folder"]).exists():
        assert time.monotonic() < deadline, "the keeper did not end"
        time.sleep(0.02)

