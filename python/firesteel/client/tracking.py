"""Writers with the faces of TensorBoard, MLflow and Weights & Biases.

They all send what they are given to the job, where it is written as
TensorBoard event files (with `add_experiment_tracking`) and into the run's
metrics. Whichever writer a script uses, the job decides where it goes.

    from firesteel.client.tracking import SummaryWriter

    writer = SummaryWriter()
    writer.add_scalar("loss", 0.25, global_step=1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firesteel.client._model import AnalyticsDataType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firesteel.client._context import APIContext

__all__ = ["MLflowWriter", "SummaryWriter", "WandBWriter", "init", "shutdown"]


class _Writer:
    def __init__(self, ctx: APIContext | None = None) -> None:
        self._ctx = ctx

    def _log(self, key: str, value: Any, kind: AnalyticsDataType, **extra: Any) -> None:
        from firesteel import client

        client.log(key, value, kind, ctx=self._ctx, **extra)


class SummaryWriter(_Writer):
    """TensorBoard's writer, as far as scalars and text go."""

    def add_scalar(
        self, tag: str, scalar: float, global_step: int | None = None, **kwargs: Any
    ) -> None:
        """Logs one number; without `global_step` it counts for the current round."""
        self._log(tag, scalar, AnalyticsDataType.SCALAR, global_step=global_step, **kwargs)

    def add_scalars(
        self, tag: str, scalars: Mapping[str, float], global_step: int | None = None, **kwargs: Any
    ) -> None:
        """Logs several numbers as `tag/name`."""
        self._log(tag, dict(scalars), AnalyticsDataType.SCALARS, global_step=global_step, **kwargs)

    def add_text(
        self, tag: str, text: str, global_step: int | None = None, **kwargs: Any
    ) -> None:
        """Logs a text."""
        self._log(tag, text, AnalyticsDataType.TEXT, global_step=global_step, **kwargs)

    def flush(self) -> None:
        """Nothing to do: every value is on its way when `add_…` returns."""

    def close(self) -> None:
        """Nothing to do, either."""


class MLflowWriter(_Writer):
    """MLflow's functions."""

    def log_param(self, key: str, value: Any) -> None:
        """Logs a parameter of this run."""
        self._log(key, value, AnalyticsDataType.PARAMETER)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs several."""
        self._log("params", dict(values), AnalyticsDataType.PARAMETERS)

    def log_metric(self, key: str, value: float, step: int | None = None) -> None:
        """Logs one number."""
        self._log(key, value, AnalyticsDataType.METRIC, global_step=step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs several."""
        self._log("metrics", dict(metrics), AnalyticsDataType.METRICS, global_step=step)

    def log_text(self, text: str, artifact_file_path: str) -> None:
        """Logs a text under a file's name."""
        self._log(artifact_file_path, text, AnalyticsDataType.TEXT)

    def set_tag(self, key: str, tag: Any) -> None:
        """Sets a tag of this run."""
        self._log(key, tag, AnalyticsDataType.TAG)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets several."""
        self._log("tags", dict(tags), AnalyticsDataType.TAGS)


class WandBWriter(_Writer):
    """Weights & Biases' `log`."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs several numbers."""
        self._log("metrics", dict(metrics), AnalyticsDataType.METRICS, global_step=step)


def init(rank: int | str | None = None, config_file: str | None = None) -> APIContext:
    """For scripts that only log: the same as `firesteel.client.init`."""
    from firesteel import client

    return client.init(rank=rank, config_file=config_file)


def shutdown() -> None:
    """The same as `firesteel.client.shutdown`."""
    from firesteel import client

    client.shutdown()
