"""Recipes: what they build, and what they refuse by parameter, value and remedy."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firesteel.errors import SpecError
from firesteel.recipe import (
    FedAvgRecipe,
    FrameworkType,
    NumpyFedAvgRecipe,
    Policy,
    SimEnv,
    SklearnFedAvgRecipe,
    TransferType,
    TrimmedMean,
    add_experiment_tracking,
)
from firesteel.recipe import _recipe as recipe_module
from firesteel.recipe import _script

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = "import firesteel.client as flare\nimport numpy as np\nflare.init()\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(SCRIPT)
    return tmp_path


def recipe(**parameters: Any) -> FedAvgRecipe:
    given = {"train_script": "client.py", "min_clients": 2, **parameters}
    return FedAvgRecipe(**given)


def spec(**parameters: Any) -> dict[str, Any]:
    return recipe(**parameters)._job.spec


def test_a_short_recipe_is_filled_with_flares_defaults(here: Path) -> None:
    built = spec()
    assert built["name"] == "fedavg"
    assert built["algorithm"] == {"kind": "fedavg", "num_rounds": 2, "start_round": 0}
    assert built["min_clients"] == 2
    trainer = built["trainer"]
    assert trainer["script"] == str(here / "client.py")
    assert trainer["mode"] == "warm" and trainer["launch_once"] is True
    assert trainer["transfer"] == "FULL" and trainer["framework"] == "numpy"
    assert built["selection"] == {"key_metric": "accuracy", "mode": "max"}
    assert built["aggregation"]["method"] == "mean"
    assert built["keep_models"] == 2


def test_every_parameter_reaches_the_spec() -> None:
    built = spec(
        name="digits", model=np.zeros(2), num_rounds=7, train_args="--lr 0.1 --tag 'a b'",
        aggregator=TrimmedMean(0.2), launch_external_process=True,
        command="torchrun --nproc_per_node=2", framework=FrameworkType.RAW,
        params_transfer_type=TransferType.DIFF, launch_once=False, key_metric="loss",
        key_metric_mode="min", stop_cond="loss <= 0.1", patience=3, exclude_vars="bn.*",
        aggregation_weights={"site-1": 2}, client_memory_gc_rounds=4, cuda_empty_cache=True,
        data={"train": "digits"}, policy=Policy(task_deadline=5, late="next_round"),
        master_dtype="float32", keep_models=5, site_config={"site-1": {"train_args": ["x"]}},
        launch_timeout=30, shutdown_timeout=2,
    )  # fmt: skip
    trainer = built["trainer"]
    assert trainer["args"] == ["--lr", "0.1", "--tag", "a b"]
    assert (trainer["mode"], trainer["command"]) == ("external", ["torchrun", "--nproc_per_node=2"])
    assert (trainer["framework"], trainer["exchange"]) == ("raw", "raw")
    assert trainer["transfer"] == "DIFF"
    assert (trainer["launch_once"], trainer["gc_rounds"]) == (False, 4)
    assert built["aggregation"] == {
        "method": "trimmed_mean", "trim": 0.2, "exclude": ["bn.*"],
        "site_weights": {"site-1": 2.0}, "master_dtype": "float32",
    }  # fmt: skip
    assert built["selection"] == {"key_metric": "loss", "mode": "min"}
    assert built["stop"] == {"condition": "loss <= 0.1", "patience": 3}
    assert built["policy"]["task_s"] == 5.0 and built["policy"]["late"] == "next_round"
    assert built["data"] == {"train": "digits"}
    assert built["keep_models"] == 5
    json.dumps(built)


class NotAnAggregator:
    pass


REFUSED = [
    ({"name": "a b"}, "`name` is 'a b'", ""),
    ({"name": ""}, "`name` is ''", ""),
    ({"min_clients": 0}, "`min_clients` is 0, expected a whole number of at least 1", ""),
    ({"min_clients": 1.5}, "`min_clients` is 1.5", ""),
    ({"min_clients": True}, "`min_clients` is True", ""),
    ({"num_rounds": 0}, "`num_rounds` is 0", ""),
    ({"num_rounds": "3"}, "`num_rounds` is '3'", ""),
    ({"num_rounds": 2**40}, "`num_rounds` is 1099511627776", ""),
    ({"num_round": 3}, "no parameter 'num_round'; did you mean 'num_rounds'?", "min_clients"),
    ({"files": "conf"}, "`files` is 'conf'", ""),
    ({"env": "../torch"}, "`env` is '../torch'", ""),
    ({"resources": {"gpu": 1}}, "`resources` has the key 'gpu'", "gpus"),
    ({"resources": {"gpus": -1}}, "`resources['gpus']` is -1", ""),
    ({"priority": 1.5}, "`priority` is 1.5", ""),
    ({"hierarchy": "splise"}, "`hierarchy` is 'splise'", "splice"),
    ({"meta": {"ticket": 17}}, "`meta['ticket']` is 17", ""),
    ({"train_script": "clint.py"}, "clint.py does not exist", "client.py"),
    ({"train_script": ""}, "`train_script` is ''", ""),
    ({"train_script": "."}, "is a folder", ""),
    ({"filters": ["nf4"]}, "`filters` is 'nf4', expected a filter", "Quantize"),
    ({"train_args": "'unclosed"}, "`train_args` is", ""),
    ({"train_args": 3}, "`train_args` is 3", "--epochs"),
    ({"aggregator": "medain"}, "`aggregator` is 'medain'", "did you mean 'median'?"),
    ({"aggregator": NotAnAggregator()}, "`aggregator` is <", "written in Python are not supported"),
    ({"aggregator_data_kind": "GRADS"}, "`aggregator_data_kind` is 'GRADS'", ""),
    ({"launch_external_process": 1}, "`launch_external_process` is 1", ""),
    ({"command": ""}, "`command` is ''", "python3 -u"),
    ({"command": "torchrun"}, "`command` is 'torchrun', but", "launch_external_process=True"),
    ({"framework": "pytoch"}, "`framework` is 'pytoch'", "did you mean 'pytorch'?"),
    ({"server_expected_format": "x"}, "`server_expected_format` is 'x'", ""),
    ({"params_exchange_format": "x"}, "`params_exchange_format` is 'x'", ""),
    ({"params_transfer_type": "HALF"}, "`params_transfer_type` is 'HALF'", ""),
    ({"params_transfer_type": "DIFF"}, "there is no initial model to differ from", "model="),
    ({"model_persistor": object()}, "`model_persistor` is", "save_filename"),
    ({"site_config": {"site-1": {"train_arg": "x"}}}, "has the key 'train_arg'", "'train_args'"),
    ({"site_config": {"site-1": {"framework": "raw"}}}, "belongs to the whole job", "recipe"),
    ({"site_config": {"site 1": {}}}, "`site_config` is 'site 1'", ""),
    ({"site_config": {"s": {"command": "x"}}}, "has a command", "launch_external_process"),
    ({"site_config": ["site-1"]}, "`site_config` is ['site-1']", ""),
    ({"launch_once": "yes"}, "`launch_once` is 'yes'", ""),
    ({"launch_timeout": 0}, "`launch_timeout` is 0", ""),
    ({"shutdown_timeout": -1}, "`shutdown_timeout` is -1", ""),
    ({"key_metric": ""}, "`key_metric` is ''", ""),
    ({"key_metric_mode": "maximum"}, "`key_metric_mode` is 'maximum'", "did you mean 'max'"),
    ({"stop_cond": "accuracy>=0.9"}, "`stop_cond` is 'accuracy>=0.9'", ""),
    ({"stop_cond": "accuracy => 0.9"}, "`stop_cond` is", ""),
    ({"patience": 0}, "`patience` is 0", ""),
    ({"best_model_filename": "best.bin"}, "`best_model_filename` is 'best.bin'", ""),
    ({"save_filename": "../x.pt"}, "`save_filename` is '../x.pt'", ""),
    ({"exclude_vars": "("}, "`exclude_vars` is '('", ""),
    ({"aggregation_weights": {"site-1": -1}}, "aggregation_weights['site-1']` is -1", ""),
    ({"aggregation_weights": [1]}, "`aggregation_weights` is [1]", ""),
    ({"server_memory_gc_rounds": -1}, "`server_memory_gc_rounds` is -1", ""),
    ({"client_memory_gc_rounds": "x"}, "`client_memory_gc_rounds` is 'x'", ""),
    ({"enable_tensor_disk_offload": 3}, "`enable_tensor_disk_offload` is 3", ""),
    ({"cuda_empty_cache": 3}, "`cuda_empty_cache` is 3", ""),
    ({"data": ["train"]}, "`data` is ['train']", ""),
    ({"data": {"train": 3}}, "`data['train']` is 3", ""),
    ({"policy": {"late": "drop"}}, "`policy` is", "Policy("),
    ({"master_dtype": "f32"}, "`master_dtype` is 'f32'", "did you mean 'float32'?"),
    ({"keep_models": 0}, "`keep_models` is 0", ""),
    ({"execution_mode": "attached"}, "`execution_mode` is 'attached'", "did you mean 'attach'?"),
    ({"execution_mode": "attach", "launch_external_process": True}, "`execution_mode`", "one of"),
    ({"model": object()}, "`model` is a builtins.object", "torch module"),
    ({"model": {"w": object()}}, "model['w']: a object cannot be sent", ""),
    ({"model": {"class_path": "no.such.Net"}}, "no.such.Net cannot be imported", "PYTHONPATH"),
    ({"model": {"class_path": "json.JSONDecoder", "args": {"x": 1}}}, "cannot be made", ""),
    ({"model": ["a", "b"]}, "`model` is a list that is no array", ""),
    ({"model": np.zeros(1), "initial_model": np.zeros(1)}, "are the same parameter", ""),
    ({"initial_ckpt": "none.npy"}, "there is no model file none.npy", "relative"),
    ({"initial_ckpt": "client.py"}, "has the suffix '.py'", ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence", "hint"), REFUSED, ids=lambda v: str(v)[:40])
def test_a_bad_parameter_is_refused_with_name_value_and_remedy(
    change: dict[str, Any], sentence: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        recipe(**change)
    assert sentence in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.field


def test_every_parameter_of_the_recipe_is_refused_somewhere() -> None:
    tried = {key for change, _, _ in REFUSED for key in change}
    code = FedAvgRecipe.__init__.__code__
    known = set(code.co_varnames[1 : 1 + code.co_kwonlyargcount])
    # An alias of `site_config`, which the same check reads.
    assert known - tried == {"per_site_config"}


POLICIES = [
    ({"quorum_start": 0}, "policy.quorum_start"),
    ({"quorum_round": "2"}, "policy.quorum_round"),
    ({"required_sites": "site-1"}, "policy.required_sites"),
    ({"round_deadline": 0}, "policy.round_deadline"),
    ({"task_deadline": float("nan")}, "policy.task_deadline"),
    ({"grace": -1}, "policy.grace"),
    ({"late": "keep"}, "policy.late"),
    ({"on_failure": "ignore"}, "policy.on_failure"),
    ({"max_failures": 0}, "policy.max_failures"),
]


@pytest.mark.parametrize(("change", "field"), POLICIES)
def test_a_bad_policy_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Policy(**change)
    assert caught.value.field == field


ENVIRONMENTS = [
    ({"num_clients": -1}, "num_clients"),
    ({"clients": "site-1"}, "clients"),
    ({"clients": ["a", "a"]}, "clients"),
    ({"clients": ["a/b"]}, "clients"),
    ({"num_clients": 3, "clients": ["a"]}, "num_clients"),
    ({"num_threads": 0}, "num_workers"),
    ({"num_threads": 1, "num_workers": 1}, "num_threads"),
    ({"gpu_config": "one"}, "gpu_config"),
    ({"log_config": ""}, "log_config"),
    ({"seed": -1}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"debug": "a b"}, "debug"),
    ({"data": ["x"]}, "data"),
    ({"data": {"a": "x", "b": {}}}, "data"),
    ({"data": {"a": {"train": 3}}}, "data['a']['train']"),
    ({"durations": {"trainer": 3}}, "durations"),
    ({"durations": {"trainer_start": 0}}, "durations['trainer_start']"),
    ({"extra": [1]}, "extra"),
]


@pytest.mark.parametrize(("change", "field"), ENVIRONMENTS)
def test_a_bad_environment_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        SimEnv(**change)
    assert caught.value.field == field


def test_the_former_name_of_model_warns() -> None:
    with pytest.warns(DeprecationWarning, match="now called `model`"):
        built = recipe(initial_model=[1, 2])
    params = built._job.make_params()
    assert params["numpy_key"].dtype == np.float32


def test_models_of_many_kinds(here: Path) -> None:
    def params(**given: Any) -> Any:
        return recipe(**given)._job.make_params()

    assert params(model=[[1, 2], [3, 4]])["numpy_key"].shape == (2, 2)
    assert params(model=np.zeros(3, np.int8))["numpy_key"].dtype == np.int8
    assert list(params(model={"a": np.zeros(1), "b": [1]})) == ["a", "b"]
    assert len(params(model=[np.zeros(1), np.zeros(2)])) == 2
    (here / "mine.py").write_text(
        "import numpy as np\nclass Net:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def state_dict(self): return {'w': np.ones(self.n)}\n"
    )
    sys.path.insert(0, str(here))
    try:
        for key in ("class_path", "path"):
            assert params(model={key: "mine.Net", "args": {"n": 4}})["w"].shape == (4,)
    finally:
        sys.path.remove(str(here))
    np.save(here / "w.npy", np.ones(5))
    np.savez(here / "w.npz", w=np.ones(5))
    assert params(initial_ckpt="w.npy")["numpy_key"].shape == (5,)
    assert params(initial_ckpt=here / "w.npz")["w"].shape == (5,)
    with pytest.raises(SpecError, match=r"`w` has shape \(5,\), the model's has \(4,\)"):
        recipe(initial_ckpt="w.npz", model={"w": np.ones(4)})


def test_fitted_estimators_are_models() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    fitted = linear.LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    built = recipe(model=fitted)
    assert built._job.spec["trainer"]["framework"] == "sklearn"
    assert set(built._job.make_params()) == {"coef_", "intercept_"}
    with pytest.raises(SpecError, match="has not learned anything yet"):
        recipe(model=linear.LogisticRegression())


@pytest.mark.torch
def test_torch_modules_and_checkpoints_are_models(here: Path) -> None:
    import torch

    net = torch.nn.Linear(3, 2)
    built = recipe(model=net)
    assert built._job.spec["trainer"]["framework"] == "pytorch"
    assert built._job.spec["trainer"]["exchange"] == "pytorch"
    assert set(built._job.make_params()) == {"weight", "bias"}
    torch.save({"model": net.state_dict(), "train_conf": {}}, here / "FL_global_model.pt")
    again = recipe(model=net, initial_ckpt="FL_global_model.pt")
    assert torch.equal(again._job.make_params()["weight"], net.weight)
    torch.save(net, here / "whole.pt")
    with pytest.raises(SpecError, match="more than plain tensors"):
        recipe(initial_ckpt="whole.pt")


def test_the_framework_is_read_off_the_script(here: Path) -> None:
    (here / "net.py").write_text("import torch\n")
    (here / "deep.py").write_text("from net import torch\nimport sklearn.linear_model\n")
    built = spec(train_script="deep.py")
    assert built["trainer"]["framework"] == "pytorch"
    # TensorFlow cannot be forked: it gets a process of its own.
    (here / "tf.py").write_text("import tensorflow as tf\n")
    built = spec(train_script="tf.py")
    assert (built["trainer"]["framework"], built["trainer"]["mode"]) == ("tensorflow", "external")


def test_preloaded_modules_are_modules_of_allowed_libraries(here: Path) -> None:
    pytest.importorskip("sklearn")
    (here / "a.py").write_text(
        "import json, sys, this, requests, sklearn.linear_model\nfrom sklearn import metrics, clone\n"
        "from numpy import array\nfrom numpy import random\nimport b\n"
    )
    (here / "b.py").write_text("def f():\n    import scipy.stats\n")
    found = _script.Imports(str(here / "a.py")).preload("sklearn")
    # No user's library, nothing that is no module, nothing that acts when imported.
    assert found == [
        "numpy", "sklearn", "json", "sklearn.linear_model", "sklearn.metrics", "numpy.random",
        "scipy.stats",
    ]  # fmt: skip


def test_a_script_beside_job_py_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(here / "job.py"), raising=False)
    assert spec()["trainer"]["script"] == str(here / "client.py")


def test_thin_recipes() -> None:
    given: dict[str, Any] = {"train_script": "client.py", "min_clients": 1}
    numpy = NumpyFedAvgRecipe(model=[1.0], **given)
    assert numpy._job.spec["trainer"]["framework"] == "numpy"
    sklearn = SklearnFedAvgRecipe(model_params={"n_classes": 2}, **given)
    assert sklearn._job.spec["trainer"]["framework"] == "sklearn"
    assert sklearn._job.make_params() == {"n_classes": 2}
    with pytest.raises(SpecError, match="did you mean 'num_rounds'"):
        NumpyFedAvgRecipe(num_round=3, **given)


def test_tracking_is_tensorboard_or_a_clear_sentence() -> None:
    built = recipe()
    add_experiment_tracking(built, "tensorboard")
    add_experiment_tracking(built, tracking_type="tensorboard")
    assert built._job.spec["tracking"] == ["tensorboard"]
    for given, field in [
        ({"tracking_type": "mlflow"}, "tracking_type"),
        ({"tracking_type": "tensorbord"}, "tracking_type"),
        ({"tracking_type": "tensorboard", "client_side": True}, "client_side"),
        ({"tracking_type": "tensorboard", "tracking_config": {"x": 1}}, "tracking_config"),
    ]:
        with pytest.raises(SpecError) as caught:
            add_experiment_tracking(recipe(), **given)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_export_writes_job_scripts_and_model(fake: Any, here: Path) -> None:
    (here / "model.py").write_text("import numpy\n")
    (here / "client.py").write_text(SCRIPT + "import model\n")
    built = recipe(name="digits", model=np.ones(3), site_config={"site-2": {"train_args": "x"}})
    path = built.export(here / "jobs", env=SimEnv(num_clients=2))
    assert path == str(here / "jobs" / "digits")
    exported = json.loads((here / "jobs/digits/job.json").read_text())
    assert exported["sites"] == ["site-1", "site-2"]
    assert exported["trainer"]["script"] == "client.py"
    assert exported["initial_model"] == "models/initial.safetensors"
    assert exported["site"]["site-2"]["args"] == ["x"]
    names = {str(p.relative_to(path)) for p in (here / "jobs").rglob("*") if p.is_file()}
    assert names == {"job.json", "code/client.py", "code/model.py", "models/initial.safetensors"}


def test_export_on_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe_module, "_asked", [])
    for argv, folder in [
        (["job.py", "--export"], "./fl_job"),
        (["job.py", "--export-dir", "x", "-n", "3"], "x"),
        (["job.py", "--export-dir=y"], "y"),
    ]:
        words = list(argv)
        recipe_module.take_export_arguments(words)
        assert not any("export" in word for word in words)
        assert recipe_module._asked == [folder]
    with pytest.raises(SystemExit) as ended:
        recipe().execute(SimEnv(num_clients=2))
    assert ended.value.code == 0
    assert str(here / "y" / "fedavg") in capsys.readouterr().out
    assert (here / "y/fedavg/job.json").is_file()
