"""Log records of a training script, on their way to the site's logs."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firesteel._native import Bridge


class Forwarder(logging.Handler):
    """Hands records to the site's agent, under `custom.<script>`."""

    def __init__(self, bridge: Bridge, script: str) -> None:
        super().__init__()
        self.bridge = bridge
        self.script = script
        self.process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        # A process that the script forked shares our socket and must not
        # write into the middle of our messages.
        if os.getpid() != self.process:
            return
        try:
            self.bridge.log(record.levelno, self.name_of(record.name), self.format(record))
        except Exception:
            self.handleError(record)

    def name_of(self, logger: str) -> str:
        """The name under which a record is kept."""
        own = f"custom.{self.script}"
        if logger in ("root", "__main__", self.script):
            return own
        if logger.startswith(("custom.", "firesteel.")):
            return logger
        return f"{own}.{logger}"


def install(bridge: Bridge, *, script: str, level: str, captured: bool) -> Forwarder:
    """Adds a forwarder to the root logger.

    Where the process's output is captured, handlers that write records to it
    are taken off: their lines would come a second time, without their level.
    """
    root = logging.getLogger()
    remove(root)
    if captured:
        ours = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        for handler in list(root.handlers):
            if type(handler) is logging.StreamHandler and handler.stream in ours:
                root.removeHandler(handler)
    forwarder = Forwarder(bridge, script)
    root.addHandler(forwarder)
    number = logging.getLevelName(level.upper()) if level else None
    # WARNING is what an untouched root logger has; anything else is the user's.
    if isinstance(number, int) and root.level == logging.WARNING:
        root.setLevel(number)
    return forwarder


def remove(root: logging.Logger) -> None:
    """Takes earlier forwarders off: their bridge is closed or about to be."""
    for handler in list(root.handlers):
        if isinstance(handler, Forwarder):
            root.removeHandler(handler)
