"""One round of a training script without a site, for the warm parent.

What Python makes when it is first needed (caches of attributes and methods,
quickened code, a library's lazy imports) is then made once, and shared by all
trainers that are forked afterwards, instead of once in each of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from firesteel import _native
from firesteel.client import _logs
from firesteel.client._context import APIContext
from firesteel.client._model import FLModel

if TYPE_CHECKING:
    from firesteel._native import Bridge


class _Prompter:
    """Stands in for the connection; what it says is what an agent might."""

    def __init__(self) -> None:
        params: list[Any] = [("w", "F64", (3,), np.zeros(3).view(np.uint8))]
        model = _native.write_model(None, params)
        self.data = cast(bytes, model)
        self.name = "train"
        self.round = self.attempt = self.start_round = 0
        self.total_rounds = 1
        self.meta = "{}"

    @property
    def model(self) -> Any:
        return _native.ModelFile.from_bytes(self.data)

    def next(self, timeout: float | None = None) -> Any:
        return self

    def log(self, *said: Any) -> None: ...

    def send(self, *said: Any, **result: Any) -> None: ...

    def close(self) -> None: ...


def play() -> None:
    """Runs the client API on a dummy; leaves nothing behind that a script could see."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        _play_a_round()
        if "argparse" in sys.modules:
            _parse_arguments()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _play_a_round() -> None:
    bridge = cast("Bridge", _Prompter())
    context = APIContext(0)
    context._bridge = bridge
    context._welcome = json.loads(json.dumps({"job_id": "", "site": "", "seed": 0, "data": {}}))
    context._forwarder = _logs.install(bridge, script="rehearsal", level="INFO", captured=False)
    logging.getLogger("rehearsal").info("a line")
    while context.is_running() and not context._sent:
        model = context.receive()
        assert model is not None and model.params is not None
        model.params["w"] += 1.0
        metrics = {"loss": float(np.mean(model.params["w"] ** 2))}
        context.send(FLModel(params=model.params, metrics=metrics))
    context.shutdown()


def _parse_arguments() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="rehearsal")
    parser.add_argument("--epochs", type=int, default=1, help="how many")
    parser.add_argument("--flag", action="store_true")
    with contextlib.suppress(SystemExit):
        parser.parse_args(["--epochs", "2"])
