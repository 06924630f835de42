"""What the tests share: the package on the path, the stand-in, and the groups."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    fake_native.StreamLink.offers = {}
    fake_native.StreamLink.open_links = []
    fake_native.Simulation.started = []
    fake_native.Simulation.outcome = {}
    yield fake_native


@pytest.fixture
def start(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Starts a job of some tasks; returns the bridge."""
    import firesteel.client as flare

    monkeypatch.setenv("FIRESTEEL_BRIDGE", "/nowhere.sock")
    monkeypatch.setenv("FIRESTEEL_TOKEN", "secret")
    monkeypatch.setattr(flare, "_current", None)
    monkeypatch.setattr(sys, "argv", ["/x/client.py"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    def begin(tasks: Any = 2, params: Any = None, rank: int = 0, **hello: Any) -> Any:
        if isinstance(tasks, int):
            given = {"w": np.zeros(3, np.float32)} if params is None else params
            tasks = [fake.Task(fake.model_file(given), round=n) for n in range(tasks)]
        fake.Bridge.script = tasks
        fake.Bridge.hello = {"outbox": str(tmp_path), **hello}
        flare.init(rank=rank)
        return fake.Bridge.last

    yield begin
    root.handlers[:], root.level = before
    if flare._current is not None:
        flare.shutdown()
