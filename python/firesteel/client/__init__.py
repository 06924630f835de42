"""What a training script says to its federation.

    import firesteel.client as flare

    flare.init()
    while flare.is_running():
        model = flare.receive()
        params, metrics = train(model.params)
        flare.send(flare.FLModel(params=params, metrics=metrics))

Every function takes `ctx=`, the context that `init` returned; without it, the
one that was made last.
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, overload

from firesteel.client._context import EVALUATE, SUBMIT_MODEL, TRAIN, APIContext
from firesteel.client._model import AnalyticsDataType, FLModel, ParamsType
from firesteel.client._state import State
from firesteel.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from firesteel.client import tracking as tracking

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "APIContext",
    "AnalyticsDataType",
    "FLModel",
    "ParamsType",
    "State",
    "clear",
    "data",
    "evaluate",
    "get_config",
    "get_job_id",
    "get_site_name",
    "get_task_name",
    "init",
    "is_evaluate",
    "is_running",
    "is_submit_model",
    "is_train",
    "log",
    "receive",
    "send",
    "shutdown",
    "state",
    "system_info",
    "train",
]

_current: APIContext | None = None


def _chosen(ctx: APIContext | None = None) -> APIContext:
    chosen = ctx or _current
    if chosen is None:
        raise ClientError(
            "flare was used before flare.init()",
            hint="call flare.init() once, at the start of the script",
            code="misuse",
        )
    return chosen


def init(rank: int | str | None = None, config_file: str | None = None) -> APIContext:
    """Connects this process to the job that started it.

    Args:
        rank: this process's place among several (torchrun); by default the
            environment's `RANK`, or 0. Only rank 0 sends.
        config_file: an attach profile, for a script that was started by hand.
            The environment's `FIRESTEEL_ATTACH` does the same.

    Raises:
        ClientError: when there is no job around this process.
    """
    global _current
    if _current is not None and _current.connected:
        if config_file is None or config_file == _current.config_file:
            warnings.warn(
                "flare.init() was called twice; the first connection is used",
                RuntimeWarning,
                stacklevel=2,
            )
            return _current
    made = APIContext(rank, config_file)
    made.connect()
    _current = made
    _install_hook()
    return made


def receive(timeout: float | None = None, ctx: APIContext | None = None) -> FLModel | None:
    """The model of the current task; waits for it.

    Gives the same model until `send`. None when the job has ended, or when
    nothing came within `timeout` seconds.
    """
    return _chosen(ctx).receive(timeout)


def send(model: FLModel, clear_cache: bool = True, ctx: APIContext | None = None) -> None:
    """Answers the current task; returns when the site has taken the answer.

    In a job with `params_transfer_type="DIFF"`, full params are sent as their
    difference to the model that was received. `clear_cache` lets go of the
    params of both models afterwards.

    Raises:
        ClientError: before `receive`, twice for one task, or without params
            and metrics.
        TreeError: when params hold something that cannot be sent.
    """
    _chosen(ctx).send(model, clear_cache)


def is_running(ctx: APIContext | None = None) -> bool:
    """Waits for the next task; False when the job has ended."""
    return _chosen(ctx).is_running()


def is_train(ctx: APIContext | None = None) -> bool:
    """Whether the current task is to train."""
    return _task_name("is_train", ctx) == TRAIN


def is_evaluate(ctx: APIContext | None = None) -> bool:
    """Whether the current task is to evaluate the model: answer with metrics."""
    return _task_name("is_evaluate", ctx) == EVALUATE


def is_submit_model(ctx: APIContext | None = None) -> bool:
    """Whether the current task is to hand in the site's own model."""
    return _task_name("is_submit_model", ctx) == SUBMIT_MODEL


def get_task_name(ctx: APIContext | None = None) -> str:
    """The current task: `train`, `validate` or `submit_model`."""
    name = _task_name("get_task_name", ctx)
    if name is None:
        raise ClientError("there is no task: the job has ended", code="misuse")
    return name


def _task_name(function: str, ctx: APIContext | None) -> str | None:
    context = _chosen(ctx)
    if context.rank != 0:
        raise ClientError(
            f"flare.{function}() was called on rank {context.rank}; only rank 0 knows the task",
            hint="call it on rank 0 and broadcast the answer",
            code="misuse",
        )
    task = context.await_task()
    return None if task is None else task.name


def system_info(ctx: APIContext | None = None) -> dict[str, Any]:
    """Facts about the job and this site: `job_id`, `job_name`, `site_name`, `sites_total`."""
    welcome = _chosen(ctx).welcome
    return {
        "job_id": welcome.get("job_id"),
        "job_name": welcome.get("job_name"),
        "site_name": welcome.get("site"),
        "sites_total": welcome.get("sites_total"),
    }


def get_config(ctx: APIContext | None = None) -> dict[str, Any]:
    """How this site was told to run the script."""
    welcome = _chosen(ctx).welcome
    hidden = ("outbox", "state_file")
    config = {key: value for key, value in welcome.items() if key not in hidden}
    config.update(config.pop("config", None) or {})
    return config


def get_job_id(ctx: APIContext | None = None) -> str:
    """The job's id."""
    return str(_chosen(ctx).welcome["job_id"])


def get_site_name(ctx: APIContext | None = None) -> str:
    """This site's name."""
    return str(_chosen(ctx).welcome["site"])


def data(name: str, ctx: APIContext | None = None) -> str:
    """Where the data of that name lies at this site: a path or URI.

    Raises:
        ClientError: when the site has no such data; it lists what there is.
    """
    return _chosen(ctx).data(name)


def log(
    key: str,
    value: Any,
    data_type: AnalyticsDataType | str = AnalyticsDataType.SCALAR,
    ctx: APIContext | None = None,
    **kwargs: Any,
) -> None:
    """Logs a value of the running training; ranks other than 0 log nothing.

    Args:
        key: its name, `train/loss` say.
        value: a number, text, or a dict of numbers for SCALARS and METRICS.
        data_type: what it is.
        ctx: see the module.
        kwargs: `global_step`, and whatever else the reader of the log wants.
    """
    _chosen(ctx).log(key, value, data_type, **kwargs)


def clear(ctx: APIContext | None = None) -> None:
    """Forgets the received model's params; the task still wants its answer."""
    received = _chosen(ctx)._received
    if received is not None:
        received.params = None


def shutdown(ctx: APIContext | None = None) -> None:
    """Ends the connection. A script that ends does not need it."""
    _chosen(ctx).shutdown()


@overload
def train(function: F, /) -> F: ...
@overload
def train(**defaults: Any) -> Callable[[F], F]: ...
def train(function: Any = None, /, **defaults: Any) -> Any:
    """Makes a function that takes an FLModel first a training step.

    The wrapped function is given the received model, and what it returns, an
    FLModel, is sent. A loop with `receive` and `send` says the same.
    """

    def wrap(inner: Any) -> Any:
        @functools.wraps(inner)
        def step(*args: Any, **kwargs: Any) -> Any:
            result = _call(inner, args, {**defaults, **kwargs})
            if not isinstance(result, FLModel):
                raise ClientError(
                    f"{inner.__name__}() returned a {type(result).__name__}, expected an FLModel",
                    hint="return flare.FLModel(params=…)",
                    code="misuse",
                )
            send(result)
            return result

        return step

    _warn_decorator("train")
    return wrap if function is None else wrap(function)


@overload
def evaluate(function: F, /) -> F: ...
@overload
def evaluate(**defaults: Any) -> Callable[[F], F]: ...
def evaluate(function: Any = None, /, **defaults: Any) -> Any:
    """Makes a function that takes an FLModel first an evaluation.

    What it returns, a number, a dict of numbers or an FLModel with metrics,
    goes with the next `send`; it is sent at once when the task is to evaluate.
    """

    def wrap(inner: Any) -> Any:
        @functools.wraps(inner)
        def step(*args: Any, **kwargs: Any) -> Any:
            result = _call(inner, args, {**defaults, **kwargs})
            metrics: Any = result.metrics if isinstance(result, FLModel) else result
            if isinstance(metrics, (int, float)) or hasattr(metrics, "item"):
                metrics = {"accuracy": float(metrics)}
            if not isinstance(metrics, dict):
                raise ClientError(
                    f"{inner.__name__}() returned no metrics",
                    hint='return {"accuracy": 0.9}, say',
                    code="misuse",
                )
            if is_evaluate():
                send(FLModel(metrics=metrics))
            else:
                _chosen().keep_metrics(metrics)
            return result

        return step

    _warn_decorator("evaluate")
    return wrap if function is None else wrap(function)


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    model = receive()
    given = any(isinstance(value, FLModel) for value in (*args[:1], *kwargs.values()))
    return function(*args, **kwargs) if given else function(model, *args, **kwargs)


def _warn_decorator(name: str) -> None:
    warnings.warn(
        f"@flare.{name} is deprecated; write the loop with receive() and send()",
        DeprecationWarning,
        stacklevel=3,
    )


state = State(_chosen)
"""What this site keeps between tasks: see `State`."""


def _report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> bool:
    """Tells the site why this process ends; for whatever runs a script.

    True when the site has heard it. A script that did not get as far as
    `init` is reported through a connection made for the purpose.
    """
    global _current
    context = _current
    if context is None:
        if issubclass(kind, ClientError):
            return False
        context = APIContext(0)
        try:
            context.connect()
        except Exception:
            return False
    return context.report_crash(kind, error, trace)


def _forget() -> None:
    """Ends the connection of a script that has ended; for a process that runs
    the next one."""
    global _current
    context, _current = _current, None
    if context is not None:
        context.shutdown()


def _install_hook() -> None:
    earlier = sys.excepthook
    if getattr(earlier, "_firesteel", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
            _report_crash(kind, error, trace)
        earlier(kind, error, trace)

    hook._firesteel = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def __getattr__(name: str) -> Any:
    if name == "tracking":
        import importlib

        return importlib.import_module("firesteel.client.tracking")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
