"""Where logged numbers go besides the run's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firesteel.errors import SpecError
from firesteel.recipe import _fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from firesteel.recipe._recipe import Recipe

_KINDS = ("tensorboard", "mlflow", "wandb")


def add_experiment_tracking(
    recipe: Recipe,
    tracking_type: str,
    tracking_config: dict[str, Any] | None = None,
    client_side: bool = False,
    server_side: bool = True,
    clients: Sequence[str] | None = None,
) -> None:
    """Writes what scripts log as TensorBoard event files, into the run's `tb_events/`.

    Args:
        recipe: the job.
        tracking_type: `tensorboard`.
        tracking_config: nothing, for TensorBoard.
        client_side: not supported: the server's copy has every site's events.
        server_side: must be True.
        clients: not supported.

    Raises:
        SpecError: for a type or setting that is not supported.
    """
    kind = _fields.choice("tracking_type", tracking_type, _KINDS)
    if kind != "tensorboard":
        raise SpecError(
            f"`tracking_type` is {kind!r}, which is not supported; expected 'tensorboard'",
            hint="log with any of the writers in firesteel.client.tracking: TensorBoard event "
            "files hold what all of them log",
            field="tracking_type",
        )
    if client_side or clients is not None or not server_side:
        raise SpecError(
            "tracking is written on the server's side only",
            hint="its `tb_events/` has a folder per site",
            field="client_side" if client_side else "clients" if clients else "server_side",
        )
    if tracking_config:
        _fields.known_keys("tracking_config", tracking_config, ())
    tracking = recipe._job.spec["tracking"]
    if kind not in tracking:
        tracking.append(kind)
