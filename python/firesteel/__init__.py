"""Firesteel: many sites train one model together, and no site's data leaves it.

`firesteel.client` goes into the training script, `firesteel.recipe` builds and
runs a job, `firesteel.data` deals data out to simulated sites, and
`firesteel.stream` moves what is too large for memory. `Session` talks to a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from firesteel.errors import (
    ClientError,
    Error,
    Incomplete,
    JobAborted,
    JobFailed,
    ModelError,
    SpecError,
    StoreError,
    StreamError,
    TreeError,
)

if TYPE_CHECKING:
    from firesteel._models import load_model, save_model
    from firesteel.session import Session

__version__ = "0.1.0"

__all__ = [
    "ClientError",
    "Error",
    "Incomplete",
    "JobAborted",
    "JobFailed",
    "ModelError",
    "Session",
    "SpecError",
    "StoreError",
    "StreamError",
    "TreeError",
    "__version__",
    "load_model",
    "save_model",
]


def __getattr__(name: str) -> object:
    # These need NumPy, whose import costs more than all the rest, or are rarely used.
    if name in ("load_model", "save_model"):
        from firesteel import _models

        return getattr(_models, name)
    if name == "Session":
        from firesteel.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
