"""Which files travel with a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from firesteel.errors import SpecError
from firesteel.recipe import FedAvgRecipe, _bundle, _script
from firesteel.recipe._deployed import spec_for


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    # The folder of `job.py`, which is not that of pytest.
    import __main__

    monkeypatch.setattr(__main__, "__file__", str(tmp_path / "job.py"), raising=False)
    return tmp_path


def put(here: Path, **files: str) -> None:
    for name, text in files.items():
        path = here / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def taken(sites: tuple[str, ...] = (), **parameters: Any) -> tuple[dict[str, Any], dict[str, str]]:
    given = {"train_script": "client.py", "min_clients": 1, **parameters}
    spec, code = spec_for(FedAvgRecipe(**given)._job, list(sites))
    return spec, code.files


def test_a_script_brings_the_modules_beside_it_that_it_imports(here: Path) -> None:
    put(
        here,
        client_py="import model\nimport pkg.deep.leaf\nfrom pkg import side\nimport json, numpy\n",
        model_py="from helpers import a\n",
        helpers_py="import importlib\nimportlib.import_module('late')\n",
        late_py="",
        unused_py="",
        pkg__side_py="from . import twin\nfrom .deep import leaf\n",
        pkg__twin_py="",
        pkg__deep__leaf_py="from ..twin import x\n",
    )
    (here / "pkg/__init__.py").write_text("")
    (here / "pkg/deep/__init__.py").write_text("")
    spec, files = taken()
    assert spec["trainer"]["script"] == "client.py"
    assert sorted(files) == [
        "client.py", "helpers.py", "late.py", "model.py", "pkg/__init__.py",
        "pkg/deep/__init__.py", "pkg/deep/leaf.py", "pkg/side.py", "pkg/twin.py",
    ]  # fmt: skip
    assert files["pkg/side.py"] == str(here / "pkg/side.py")


def test_files_and_folders_travel_when_they_are_named(here: Path) -> None:
    put(here, client_py="")
    (here / "conf/deep").mkdir(parents=True)
    (here / "conf/a.yaml").write_text("a")
    (here / "conf/deep/b.txt").write_text("b")
    (here / "conf/__pycache__").mkdir()
    (here / "conf/__pycache__/c.pyc").write_text("c")
    outside = here.parent / f"{here.name}-words.txt"
    outside.write_text("w")
    _, files = taken(files=["conf", outside])
    assert sorted(files) == ["client.py", "conf/a.yaml", "conf/deep/b.txt", outside.name]
    with pytest.raises(SpecError, match="gone.yaml does not exist"):
        taken(files=["gone.yaml"])
    with pytest.raises(SpecError, match="`files` is 'conf'"):
        taken(files="conf")


def test_scripts_of_other_folders_do_not_overwrite_one_another(here: Path) -> None:
    put(here, client_py="import helper", helper_py="", own__train_py="import helper", own__helper_py="")
    other = here.parent / f"{here.name}-other"
    other.mkdir()
    (other / "train.py").write_text("import helper\n")
    (other / "helper.py").write_text("")
    spec, files = taken(
        site_config={
            "lyon": {"train_script": "own/train.py"},
            "oslo": {"train_script": os.path.relpath(other / "train.py")},
        }
    )
    assert spec["site"]["lyon"]["script"] == "own/train.py"
    assert spec["site"]["oslo"]["script"] == "other-1/train.py"
    assert sorted(files) == [
        "client.py", "helper.py", "other-1/helper.py", "other-1/train.py",
        "own/helper.py", "own/train.py",
    ]  # fmt: skip


def test_an_absolute_script_is_one_that_the_sites_have(here: Path) -> None:
    put(here, client_py="")
    spec, files = taken(train_script="/opt/hospital/train.py")
    assert spec["trainer"]["script"] == "/opt/hospital/train.py"
    assert files == {}


def test_an_absolute_script_beside_job_py_is_the_jobs_own(here: Path) -> None:
    put(here, client_py="")
    spec, files = taken(train_script=here / "client.py")
    assert spec["trainer"]["script"] == "client.py"
    assert list(files) == ["client.py"]


def test_data_is_asked_for_by_a_name(here: Path) -> None:
    put(here, client_py="")
    assert taken(data={"train": "digits"})[0]["data"] == {"train": "digits"}
    with pytest.raises(SpecError, match="a site's owner names its data"):
        taken(data={"train": "/data/digits.npz"})


def test_what_a_job_needs_stands_in_its_spec(here: Path) -> None:
    put(here, client_py="")
    spec, _ = taken(
        ("lyon", "oslo"),
        env="torch",
        resources={"gpus": 1, "custom": {"scanner": 2}},
        priority=-2,
        hierarchy="cache",
        meta={"ticket": "A-17"},
        launch_timeout=300,
        shutdown_timeout=5,
        site_config={"lyon": {"environment": "cpu", "resources": {"cpus": 2}}},
    )
    assert spec["sites"] == ["lyon", "oslo"]
    assert spec["env"] == "torch"
    assert spec["resources"] == {"gpus": 1, "custom": {"scanner": 2}}
    assert (spec["priority"], spec["hierarchy"]) == (-2, "cache")
    assert spec["meta"] == {"ticket": "A-17"}
    assert (spec["trainer"]["start_s"], spec["trainer"]["stop_grace_s"]) == (300, 5)
    assert spec["site"]["lyon"] == {"environment": "cpu", "resources": {"cpus": 2}}
    plain, _ = taken()
    assert not {"env", "resources", "priority", "hierarchy", "meta"} & set(plain)


@pytest.mark.parametrize(("change", "said"), [
    ({"min_clients": 3}, "`min_clients` is 3, but there are 2 sites"),
    ({"site_config": {"rome": {}}}, "names 'rome', which is not a site"),
])  # fmt: skip
def test_named_sites_are_checked(here: Path, change: dict[str, Any], said: str) -> None:
    put(here, client_py="")
    with pytest.raises(SpecError, match=said):
        taken(("lyon", "oslo"), **change)


def test_too_much_code_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(here, client_py="import a, b", a_py="", b_py="")
    monkeypatch.setattr(_bundle, "_FILES", 2)
    with pytest.raises(SpecError, match="more than 2 files"):
        taken()


def test_a_folder_of_data_is_no_module(here: Path) -> None:
    put(here, client_py="import data")
    (here / "data").mkdir()
    (here / "data/x.npz").write_text("")
    assert _script.Imports(str(here / "client.py")).files == [str(here / "client.py")]
