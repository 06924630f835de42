"""Federated averaging."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING, Any

from firesteel.errors import SpecError
from firesteel.recipe import _fields, _model, _script
from firesteel.recipe._recipe import Job, Recipe
from firesteel.recipe._types import (
    ExchangeFormat,
    FrameworkType,
    Policy,
    TransferType,
    TrimmedMean,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMAND = "python3 -u"
FRAMEWORKS = ("numpy", "pytorch", "sklearn", "tensorflow", "raw")
EXCHANGE = ("numpy", "pytorch", "raw", "keras_layer_weights")
# What a framework's scripts exchange unless a job says otherwise.
_EXCHANGED = {"pytorch": "pytorch", "raw": "raw", "tensorflow": "keras_layer_weights"}
_SITE_KEYS = (
    "train_script", "train_args", "command", "data", "env", "environment", "resources",
)  # fmt: skip
_COUNTED = ("gpus", "mem_per_gpu_gib", "cpus", "memory_gib")
# FLARE lets these differ by site; here they belong to the whole job.
_JOB_KEYS = (
    "launch_external_process",
    "framework",
    "server_expected_format",
    "params_transfer_type",
    "launch_once",
    "launch_timeout",
    "shutdown_timeout",
)


class FedAvgRecipe(Recipe):
    """Federated averaging (McMahan et al., 2017) of a training script.

    In every round each site gets the model, trains it with `train_script`, and
    the server makes the weighted mean of what comes back.

    Args:
        name: the job's name.
        model: where training starts: a torch module, a fitted scikit-learn
            estimator, an array, a dict or list of arrays, or
            `{"class_path": "model.Net", "args": {…}}`. None: the first round
            makes the model.
        initial_model: the former name of `model`.
        initial_ckpt: a file with the weights to start from.
        min_clients: sites needed, to start and in every round.
        num_rounds: rounds to run.
        train_script: the script that trains at a site.
        train_args: its arguments, as one text or a list.
        aggregator: `mean`, `median`, `trimmed_mean` or `TrimmedMean(0.2)`.
        aggregator_data_kind: `WEIGHTS`; `WEIGHT_DIFF` is
            `params_transfer_type="DIFF"`.
        launch_external_process: start the script with `command`, as a process
            of its own, instead of forking it from a warm interpreter.
        command: what stands before the script then, `torchrun
            --nproc_per_node=2` say.
        framework: `numpy`, `pytorch`, `sklearn`, `tensorflow` or `raw`; by
            default the model's, else what the script imports.
        server_expected_format: `numpy`, `pytorch`, `raw` or
            `keras_layer_weights`: what FLARE's server is to hold. Here every
            dtype travels as it is, bfloat16 with `numpy` too, so that all of them
            give the same bits; taken for jobs that say it.
        params_exchange_format: what the script gets: `numpy` arrays, `pytorch`
            tensors, `keras_layer_weights` (NumPy arrays, layer by layer), or
            `raw`: each array as what it was sent as. By default the framework's.
        params_transfer_type: `FULL`, or `DIFF` for differences to the model
            that was handed out.
        model_persistor: not supported; models are kept in the run's folder.
        per_site_config: what differs at a site: `train_script`, `train_args`,
            `command`, `data`, `env`, `environment`, `resources`.
        site_config: the same, under its newer name.
        launch_once: keep a trainer for the whole job, else one per task.
        launch_timeout: seconds for a trainer to report, 120 by default.
        shutdown_timeout: seconds between asking a trainer to end and ending it.
        key_metric: the metric that says which model is best.
        key_metric_mode: `max` (default) or `min`.
        stop_cond: `"<metric> <op> <number>"`, `"accuracy >= 0.95"` say.
        patience: rounds without improvement of `key_metric` to stop after.
        best_model_filename: a further file for the best model, in the run's
            `models/`; its suffix says the format.
        save_filename: the same for the last model.
        exclude_vars: regular expression, or several, of tensor names that the
            server leaves as they are.
        aggregation_weights: factors on the weights of sites.
        server_memory_gc_rounds: accepted; the server holds no model in memory.
        enable_tensor_disk_offload: accepted; models always lie on disk.
        client_memory_gc_rounds: collect garbage in trainers every so many rounds.
        cuda_empty_cache: empty torch's CUDA cache with it.
        data: the names of data that the script asks for with `flare.data`, and
            what they are called at the sites: `{"train": "digits"}`.
        policy: what happens when sites are late, fail or leave.
        master_dtype: `float32` or `float64`, the dtype in which the server
            keeps a model of narrower floats between rounds.
        keep_models: how many of the last models are kept.
        filters: what models pass on their way, of `firesteel.filters`: a list, as
            `[Quantize("nf4")]`, for the directions in which each filter works, or
            `{"task_data": […], "result": […]}`.
        execution_mode: `attach` when the trainers are started by hand and
            attach themselves; `in_process` and `external_process` say the same
            as `launch_external_process`.
        files: further files and folders that travel with the script; what it
            imports from beside it does so by itself.
        env: the environment to run in, by the name that the sites have given it.
        resources: what each site sets aside for the job: `{"gpus": 1,
            "mem_per_gpu_gib": 16, "cpus": 4, "memory_gib": 8, "custom": {…}}`.
        priority: jobs with a higher one go first.
        hierarchy: what relays may do: `splice` (pass on bytes that they cannot
            read), `cache` (keep models that are handed out), `aggregate` (send up
            the sum of the sites below them).
        meta: notes on the job, shown in lists: `{"ticket": "A-17"}`.

    Raises:
        SpecError: naming the parameter that is wrong.
    """

    def __init__(
        self,
        *,
        name: str = "fedavg",
        model: Any = None,
        initial_model: Any = None,
        initial_ckpt: str | os.PathLike[str] | None = None,
        min_clients: int,
        num_rounds: int = 2,
        train_script: str | os.PathLike[str],
        train_args: str | Sequence[str] = "",
        aggregator: str | TrimmedMean | None = None,
        aggregator_data_kind: str | None = "WEIGHTS",
        launch_external_process: bool = False,
        command: str | Sequence[str] = COMMAND,
        framework: str | FrameworkType | None = None,
        server_expected_format: str | ExchangeFormat = "numpy",
        params_exchange_format: str | ExchangeFormat | None = None,
        params_transfer_type: str | TransferType = "FULL",
        model_persistor: None = None,
        per_site_config: Mapping[str, Mapping[str, Any]] | None = None,
        site_config: Mapping[str, Mapping[str, Any]] | None = None,
        launch_once: bool = True,
        launch_timeout: float | None = None,
        shutdown_timeout: float = 0.0,
        key_metric: str = "accuracy",
        key_metric_mode: str | None = None,
        stop_cond: str | None = None,
        patience: int | None = None,
        best_model_filename: str | None = None,
        save_filename: str | None = None,
        exclude_vars: str | Sequence[str] | None = None,
        aggregation_weights: Mapping[str, float] | None = None,
        server_memory_gc_rounds: int = 0,
        enable_tensor_disk_offload: bool = False,
        client_memory_gc_rounds: int = 0,
        cuda_empty_cache: bool = False,
        data: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        master_dtype: str | None = None,
        keep_models: int = 2,
        filters: Any = None,
        execution_mode: str | None = None,
        files: Sequence[str | os.PathLike[str]] = (),
        env: str | None = None,
        resources: Mapping[str, Any] | None = None,
        priority: int = 0,
        hierarchy: str = "splice",
        meta: Mapping[str, str] | None = None,
    ) -> None:
        model = _renamed("model", model, "initial_model", initial_model)
        site_config = _renamed("site_config", site_config, "per_site_config", per_site_config,
                               warn=False)  # fmt: skip
        if model_persistor is not None:
            raise _fields.refuse(
                "model_persistor", model_persistor, "None",
                "models are kept in the run's `models/`; `save_filename` writes one more",
            )  # fmt: skip
        script = _script.find("train_script", train_script)
        imports = _script.Imports(script)
        chosen = _framework(framework, model, imports)
        transfer = _transfer(params_transfer_type, aggregator_data_kind)
        _fields.choice("server_expected_format", server_expected_format, EXCHANGE)
        exchange = _EXCHANGED.get(chosen, "numpy")
        if params_exchange_format is not None:
            exchange = _fields.choice("params_exchange_format", params_exchange_format, EXCHANGE)
        mode, words = _launch(launch_external_process, command, execution_mode, chosen)
        if model is not None or initial_ckpt is not None:
            # Built now, so that what is wrong with it is said now.
            params = _initial(model, initial_ckpt, chosen)

            def make_params() -> Any:
                return params

        spec: dict[str, Any] = {
            "version": 1,
            "name": _fields.name("name", name),
            "algorithm": {
                "kind": "fedavg",
                "num_rounds": _fields.whole("num_rounds", num_rounds, least=1),
                "start_round": 0,
            },
            "min_clients": _fields.whole("min_clients", min_clients, least=1),
            "trainer": {
                "script": script,
                "args": _fields.words("train_args", train_args),
                "mode": mode,
                "command": words,
                "launch_once": _fields.truth("launch_once", launch_once),
                "framework": chosen,
                "exchange": exchange,
                "transfer": transfer,
                "preload": imports.preload(chosen) if mode == "warm" else [],
                "gc_rounds": _fields.whole(
                    "client_memory_gc_rounds", client_memory_gc_rounds, least=0
                ),
                "cuda_empty_cache": _fields.truth("cuda_empty_cache", cuda_empty_cache),
            },
            "data": _data(data),
            "aggregation": _aggregation(
                aggregator, exclude_vars, aggregation_weights, master_dtype
            ),
            "selection": {
                "key_metric": _fields.text("key_metric", key_metric, expected="a metric's name"),
                "mode": _fields.choice(
                    "key_metric_mode", key_metric_mode or "max", ("max", "min")
                ),
            },
            "stop": _stop(stop_cond, patience),
            "policy": _policy(policy),
            "keep_models": _fields.whole("keep_models", keep_models, least=1),
            "tracking": [],
        }
        spec.update(_needs(env, resources, priority, hierarchy, meta))
        if filters is not None:
            from firesteel.filters import to_spec

            spec["filters"] = to_spec(filters, transfer)
        if transfer == "DIFF" and model is None and initial_ckpt is None:
            raise SpecError(
                "`params_transfer_type` is DIFF, but there is no initial model to differ from",
                hint="give the recipe `model=` or `initial_ckpt=`, or use FULL",
                field="params_transfer_type",
            )
        _fields.whole("server_memory_gc_rounds", server_memory_gc_rounds, least=0)
        _fields.truth("enable_tensor_disk_offload", enable_tensor_disk_offload)
        has_model = model is not None or initial_ckpt is not None
        job = Job(spec, make_params if has_model else None)
        job.site_config = _sites(site_config, spec["trainer"])
        scripts: list[Any] = [train_script]
        scripts += [own.get("train_script") for own in (site_config or {}).values()]
        job.installed = {os.path.normpath(path) for path in scripts if _script.is_installed(path)}
        job.files = _files(files)
        if launch_timeout is not None:
            job.durations["trainer_start"] = _fields.seconds("launch_timeout", launch_timeout)
        if _fields.seconds("shutdown_timeout", shutdown_timeout, zero=True) > 0:
            job.durations["stop_grace"] = float(shutdown_timeout)
        for which, field, value in (
            ("last", "save_filename", save_filename),
            ("best", "best_model_filename", best_model_filename),
        ):
            if value is not None:
                job.save_as[which] = _file_name(field, value)
        super().__init__(job)


def _renamed(new: str, value: Any, old: str, former: Any, *, warn: bool = True) -> Any:
    if former is None:
        return value
    if value is not None:
        raise SpecError(
            f"`{old}` and `{new}` are the same parameter; give `{new}` alone", field=old
        )
    if warn:
        warnings.warn(
            f"`{old}` is now called `{new}`", DeprecationWarning, stacklevel=3
        )
    return former


def _framework(given: Any, model: Any, imports: _script.Imports) -> str:
    if given is not None:
        return _fields.choice("framework", given, FRAMEWORKS)
    built = _model.framework_of(_model.build(model))
    # A dict of arrays may be a torch model's as well.
    if built is not None and not (built == "numpy" and isinstance(model, dict)):
        return built
    for root, framework in (("torch", "pytorch"), ("tensorflow", "tensorflow")):
        if imports.uses(root):
            return framework
    return "numpy"


def _transfer(kind: Any, data_kind: Any) -> str:
    transfer = _fields.choice("params_transfer_type", kind, ("FULL", "DIFF"))
    if data_kind is not None:
        _fields.choice("aggregator_data_kind", data_kind, ("WEIGHTS", "WEIGHT_DIFF"))
        word = getattr(data_kind, "value", data_kind)
        if str(word).upper() == "WEIGHT_DIFF":
            transfer = "DIFF"
    return transfer


def _launch(
    external: Any, command: Any, execution_mode: Any, framework: str
) -> tuple[str, list[str]]:
    mode = "external" if _fields.truth("launch_external_process", external) else "warm"
    words = _fields.words("command", command)
    if not words:
        raise _fields.refuse("command", command, "what runs the script", f"{COMMAND!r}, say")
    if execution_mode is not None:
        chosen = _fields.choice(
            "execution_mode", execution_mode, ("in_process", "external_process", "attach")
        )
        named = {"in_process": "warm", "external_process": "external", "attach": "attach"}[chosen]
        if external and named != "external":
            raise SpecError(
                f"`execution_mode` is {chosen!r}, but `launch_external_process` is True",
                hint="leave one of them out",
                field="execution_mode",
            )
        mode = named
    elif mode == "warm":
        if words != COMMAND.split():
            raise SpecError(
                f"`command` is {command!r}, but the script is not started by a command",
                hint="add launch_external_process=True",
                field="command",
            )
        if framework == "tensorflow":
            # TensorFlow starts threads when it is imported and must not be forked.
            mode = "external"
    return mode, words


def _initial(model: Any, checkpoint: Any, framework: str) -> Any:
    params = _model.params_of(model) if model is not None else None
    if checkpoint is None:
        return params
    loaded = _model.from_checkpoint(checkpoint, framework)
    if params is not None:
        _model.check_fits(loaded, params)
    return loaded


def _data(data: Any) -> dict[str, str]:
    if data is None:
        return {}
    names = _fields.mapping("data", data, 'a dict of names, {"train": "digits"} say')
    return {
        key: _fields.text(f"data[{key!r}]", value, expected="the name of a data set")
        for key, value in names.items()
    }


def _aggregation(aggregator: Any, exclude: Any, weights: Any, master: Any) -> dict[str, Any]:
    trim = 0.1
    if aggregator is None:
        method = "mean"
    elif isinstance(aggregator, TrimmedMean):
        method, trim = "trimmed_mean", aggregator.trim
    elif isinstance(aggregator, str):
        method = _fields.choice("aggregator", aggregator, ("mean", "median", "trimmed_mean"))
    else:
        raise _fields.refuse(
            "aggregator", aggregator, "'mean', 'median', 'trimmed_mean' or TrimmedMean(0.2)",
            "aggregators written in Python are not supported",
        )  # fmt: skip
    patterns = [exclude] if isinstance(exclude, str) else list(exclude or ())
    for pattern in patterns:
        try:
            re.compile(_fields.text("exclude_vars", pattern, expected="a regular expression"))
        except re.error as problem:
            raise _fields.refuse(
                "exclude_vars", pattern, f"a regular expression ({problem})"
            ) from None
    if weights is not None:
        _fields.mapping("aggregation_weights", weights, 'a dict, {"site-1": 2.0} say')
    if master is not None:
        master = _fields.choice("master_dtype", master, ("float32", "float64"))
    return {
        "method": method,
        "trim": trim,
        "exclude": patterns,
        "site_weights": {
            site: _fields.weight(f"aggregation_weights[{site!r}]", value)
            for site, value in (weights or {}).items()
        },
        "master_dtype": master,
    }


def _stop(condition: Any, patience: Any) -> dict[str, Any]:
    if condition is not None:
        form = 'a condition such as "accuracy >= 0.95", with spaces'
        words = condition.split() if isinstance(condition, str) else []
        operators = (">=", ">", "<=", "<", "==", "=")
        try:
            well = len(words) == 3 and words[1] in operators and abs(float(words[2])) < 1e308
        except ValueError:
            well = False
        if not well:
            raise _fields.refuse("stop_cond", condition, form)
    if patience is not None:
        _fields.whole("patience", patience, least=1)
    return {"condition": condition, "patience": patience}


def _policy(policy: Any) -> dict[str, Any]:
    if policy is None:
        return {}
    if not isinstance(policy, Policy):
        raise _fields.refuse("policy", policy, "a Policy", "Policy(task_deadline=60), say")
    return policy.to_json()


def _files(files: Any) -> list[str | os.PathLike[str]]:
    if isinstance(files, (str, bytes)) or not hasattr(files, "__iter__"):
        raise _fields.refuse("files", files, 'a list of paths, ["config.yaml"] say')
    return list(files)


def _needs(
    env: Any, resources: Any, priority: Any, hierarchy: Any, meta: Any
) -> dict[str, Any]:
    """What is said of it in the spec; what says nothing is left out."""
    spec: dict[str, Any] = {}
    if env is not None:
        spec["env"] = _fields.name("env", env)
    if resources is not None:
        spec["resources"] = _resources("resources", resources)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) >= 2**31:
        raise _fields.refuse("priority", priority, "a whole number, 0 for most jobs")
    if priority:
        spec["priority"] = priority
    mode = _fields.choice("hierarchy", hierarchy, ("splice", "cache", "aggregate"))
    if mode != "splice":
        spec["hierarchy"] = mode
    if meta is not None:
        notes = _fields.mapping("meta", meta, 'a dict of texts, {"ticket": "A-17"} say')
        spec["meta"] = {
            key: _fields.text(f"meta[{key!r}]", value, expected="a text")
            for key, value in notes.items()
        }
    return spec


def _resources(field: str, resources: Any) -> dict[str, Any]:
    form = 'a dict, {"gpus": 1, "memory_gib": 8} say'
    given = _fields.mapping(field, resources, form)
    _fields.known_keys(field, given, (*_COUNTED, "custom"))
    counted: dict[str, Any] = {
        name: _fields.whole(f"{field}[{name!r}]", given[name], least=0)
        for name in _COUNTED
        if name in given
    }
    if "custom" in given:
        custom = _fields.mapping(f"{field}['custom']", given["custom"], "a dict of numbers")
        counted["custom"] = {
            name: _fields.whole(f"{field}['custom'][{name!r}]", value, least=0)
            for name, value in custom.items()
        }
    return counted


def _sites(config: Any, trainer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if config is None:
        return {}
    _fields.mapping("site_config", config, 'a dict of sites, {"site-1": {…}}')
    sites = {}
    for site, given in config.items():
        field = f"site_config[{site!r}]"
        _fields.name("site_config", site)
        _fields.mapping(field, given, f"a dict of {', '.join(_SITE_KEYS)}")
        for key in given:
            if key in _JOB_KEYS:
                raise SpecError(
                    f"`{field}` has {key!r}, which belongs to the whole job",
                    hint=f"give it to the recipe, or write one job per {key}",
                    field=field,
                )
        _fields.known_keys(field, given, _SITE_KEYS)
        own: dict[str, Any] = {}
        if "train_script" in given:
            own["script"] = _script.find(f"{field}['train_script']", given["train_script"])
        if "train_args" in given:
            own["args"] = _fields.words(f"{field}['train_args']", given["train_args"])
        if "command" in given:
            if trainer["mode"] != "external":
                raise SpecError(
                    f"`{field}` has a command, but the script is not started by one",
                    hint="add launch_external_process=True to the recipe",
                    field=field,
                )
            own["command"] = _fields.words(f"{field}['command']", given["command"])
        for key in ("data", "env"):
            if key in given:
                named = _fields.mapping(f"{field}[{key!r}]", given[key], "a dict of texts")
                own[key] = {name: str(value) for name, value in named.items()}
        if "environment" in given:
            own["environment"] = _fields.name(f"{field}['environment']", given["environment"])
        if "resources" in given:
            own["resources"] = _resources(f"{field}['resources']", given["resources"])
        sites[site] = own
    return sites


def _file_name(field: str, value: Any) -> str:
    from firesteel._models import SUFFIXES

    name = _fields.text(field, value, expected="a file name")
    if "/" in name or not name.lower().endswith(SUFFIXES):
        raise _fields.refuse(field, value, f"a file name with one of {', '.join(SUFFIXES)}")
    return name


class NumpyFedAvgRecipe(FedAvgRecipe):
    """`FedAvgRecipe` for NumPy."""

    def __init__(self, *, name: str = "fedavg_numpy", **parameters: Any) -> None:
        super().__init__(name=name, framework="numpy", **parameters)


class SklearnFedAvgRecipe(FedAvgRecipe):
    """`FedAvgRecipe` for scikit-learn.

    Args:
        name: the job's name.
        model_params: what the first round is handed: settings, arrays, or both.
        parameters: those of `FedAvgRecipe`.
    """

    def __init__(
        self,
        *,
        name: str = "sklearn_fedavg",
        model_params: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> None:
        if model_params is not None:
            if parameters.get("model") is not None:
                raise SpecError(
                    "`model_params` and `model` are the same parameter; give one",
                    field="model_params",
                )
            parameters["model"] = model_params
        super().__init__(name=name, framework="sklearn", **parameters)
