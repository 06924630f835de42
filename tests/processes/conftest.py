"""What the tests of processes share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "python")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: runs real federations; needs the built module")


def pytest_runtest_setup(item: pytest.Item) -> None:
    from federation import BINARY

    if not BINARY.exists():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("the binary is not built: run `make build`")
