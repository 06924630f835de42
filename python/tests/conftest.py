"""What the tests share: the package on the path, the stand-in, and the groups."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent
ROOT = PYTHON.parent
sys.path[:0] = [str(PYTHON), str(HERE)]
# Trainers and example scripts are processes of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])]
)

BUILT = any((PYTHON / "firesteel").glob("_native*.so"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: runs real federations; needs the built module")
    config.addinivalue_line("markers", "torch: needs torch")
    config.addinivalue_line("markers", "tracking: needs tensorboard")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Only for tests that were selected: `make test GROUPS=…` selects what its
    # environments hold, so that whatever lacks there is a broken set-up. By hand
    # it is skipped, and said to be.
    lacking = []
    if item.get_closest_marker("e2e") and not BUILT:
        lacking.append("firesteel._native is not built: run `make build`")
    for marker, module in (("torch", "torch"), ("tracking", "tensorboard")):
        if item.get_closest_marker(marker) and importlib.util.find_spec(module) is None:
            lacking.append(f"{module} is not installed")
    if lacking:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("; ".join(lacking))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`firesteel._native` replaced by the stand-in."""
    import fake_native

    import firesteel

    monkeypatch.setitem(sys.modules, "firesteel._native", fake_native)
    monkeypatch.setattr(firesteel, "_native", fake_native, raising=False)
    fake_native.Bridge.script = []
    fake_native.Bridge.hello = {}
    fake_native.Simulation.started = []
    fake_native.Simulation.outcome = {}
    yield fake_native
