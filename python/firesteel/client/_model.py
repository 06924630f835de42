"""The model that travels between the server and a training script."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from firesteel.errors import ClientError


class ParamsType(str, Enum):
    """What the params of a model are."""

    FULL = "FULL"
    """The params themselves."""
    DIFF = "DIFF"
    """Their difference to the model that was received."""

    def __str__(self) -> str:
        return self.value


class AnalyticsDataType(str, Enum):
    """What kind of value is logged."""

    SCALAR = "SCALAR"
    SCALARS = "SCALARS"
    IMAGE = "IMAGE"
    TEXT = "TEXT"
    LOG_RECORD = "LOG_RECORD"
    PARAMETER = "PARAMETER"
    PARAMETERS = "PARAMETERS"
    METRIC = "METRIC"
    METRICS = "METRICS"
    MODEL = "MODEL"
    TAG = "TAG"
    TAGS = "TAGS"
    INIT_DATA = "INIT_DATA"

    def __str__(self) -> str:
        return self.value


class FLModel:
    """Params, metrics and facts about them.

    >>> model = FLModel(params={"w": [1.0, 2.0]}, metrics={"accuracy": 0.9})
    >>> model.params_type
    <ParamsType.FULL: 'FULL'>

    Args:
        params_type: FULL or DIFF; FULL when left out.
        params: a tree of dict, list, tuple, str, numbers, bytes, None, NumPy
            arrays and torch tensors. What is received is laid over the model's
            file: it may be written to, and nothing is copied before it is. A
            script that did so gets the next models in memory that it used before.
        optimizer_params: kept for scripts that set it; it is not sent.
        metrics: numbers by name; on `send` they describe the model that was
            received, as far as the choice of the best model is concerned.
        start_round: the job's first round.
        current_round: the round this model belongs to, from zero.
        total_rounds: how many rounds the job has.
        meta: facts as JSON values; `NUM_STEPS_CURRENT_ROUND` is the weight of
            this update in the mean.
        partial: True when the params hold only what was changed (adapters,
            layers that are not frozen): what they lack stays as it was received.
            "auto" leaves out each tensor whose bytes are those that were received.
    """

    def __init__(
        self,
        params_type: ParamsType | str | None = None,
        params: Any = None,
        optimizer_params: Any = None,
        metrics: dict[str, Any] | None = None,
        start_round: int | None = 0,
        current_round: int | None = None,
        total_rounds: int | None = None,
        meta: dict[str, Any] | None = None,
        *,
        partial: bool | Literal["auto"] = False,
    ) -> None:
        kind: ParamsType | None = None
        if params_type is not None:
            kind = _params_type(params_type)
            if params is None:
                raise ClientError(
                    f"FLModel has params_type={kind} but no params",
                    hint="give it `params=`, or leave `params_type` out",
                    code="misuse",
                )
        elif params is not None:
            kind = ParamsType.FULL
        for name, value in (("metrics", metrics), ("meta", meta)):
            if value is not None and not isinstance(value, dict):
                raise ClientError(
                    f"FLModel: `{name}` is a {type(value).__name__}, expected a dict",
                    hint=f'for example {name}={{"accuracy": 0.9}}' if name == "metrics" else "",
                    code="misuse",
                )
        if partial not in (False, True, "auto"):
            raise ClientError(
                f'FLModel: `partial` is {partial!r}, expected False, True or "auto"',
                code="misuse",
            )
        self.params_type = kind
        self.params = params
        self.partial = partial
        self.optimizer_params = optimizer_params
        self.metrics = metrics
        self.start_round = start_round
        self.current_round = current_round
        self.total_rounds = total_rounds
        self.meta: dict[str, Any] = {} if meta is None else meta

    def summary(self) -> dict[str, Any]:
        """How much of everything there is, without the values.

        >>> FLModel(metrics={"loss": 0.5}, current_round=3).summary()["metrics"]
        1
        """
        return {
            "params": _count(self.params),
            "optimizer_params": _count(self.optimizer_params),
            "metrics": _count(self.metrics),
            "meta": _count(self.meta),
            "params_type": self.params_type,
            "start_round": self.start_round,
            "current_round": self.current_round,
            "total_rounds": self.total_rounds,
        }

    def __repr__(self) -> str:
        parts = [
            f"{name}={value}"
            for name, value in (
                ("params_type", self.params_type),
                ("params", None if self.params is None else f"<{_count(self.params)}>"),
                ("partial", self.partial or None),
                ("metrics", self.metrics),
                ("current_round", self.current_round),
                ("total_rounds", self.total_rounds),
            )
            if value is not None
        ]
        return f"FLModel({', '.join(parts)})"


def _params_type(value: ParamsType | str) -> ParamsType:
    try:
        return ParamsType(value)
    except ValueError:
        raise ClientError(
            f"FLModel: `params_type` is {value!r}, expected ParamsType.FULL or ParamsType.DIFF",
            hint="leave it out for params as they are",
            code="misuse",
        ) from None


def _count(value: Any) -> int:
    if value is None:
        return 0
    try:
        return len(value)
    except TypeError:
        return 1
