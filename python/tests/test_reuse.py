"""Processes that run the scripts of several sites."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from firesteel.recipe import FedAvgRecipe, SimEnv

SCRIPT = """
    import os, sys
    import counter
    import firesteel.client as flare
    import numpy as np

    flare.init()
    counter.COUNT += 1
    with open(os.path.join({out!r}, f"{{flare.get_site_name()}}-{{os.getpid()}}"), "a") as file:
        print(counter.COUNT, np.random.random(), file=file)
    while flare.is_running():
        model = flare.receive()
        flare.send(flare.FLModel(params={{"w": model.params["w"] + 1}}, metrics={{"m": 1.0}}))
"""


def run(folder: Path, name: str, *, reuse: bool) -> tuple[list[str], set[str], float]:
    """What every script said, the processes they ran in, and the model."""
    out = folder / name
    out.mkdir()
    (folder / "counter.py").write_text("COUNT = 0\n")
    script = folder / f"{name}.py"
    script.write_text(textwrap.dedent(SCRIPT).format(out=str(out)))
    recipe = FedAvgRecipe(
        name=name,
        framework="numpy",
        model={"w": np.zeros(3, dtype=np.float32)},
        min_clients=12,
        num_rounds=2,
        train_script=str(script),
        key_metric="m",
    )
    env = SimEnv(
        num_clients=12,
        num_workers=2,
        reuse_processes=reuse,
        seed=7,
        workspace_root=str(folder / "runs"),
        extra={"console": "off"},
    )
    done = recipe.execute(env)
    said: dict[str, list[str]] = {}
    for path in sorted(out.iterdir()):
        site, _, _ = path.name.rpartition("-")
        said.setdefault(site, []).extend(path.read_text().splitlines())
    processes = {path.name.rpartition("-")[2] for path in out.iterdir()}
    flat = [f"{site} {line}" for site in said for line in sorted(said[site])]
    return flat, processes, float(done.model()["w"][0])


def test_reused_processes_give_what_fresh_ones_give(tmp_path: Path) -> None:
    fresh, many, expected = run(tmp_path, "fresh", reuse=False)
    reused, few, got = run(tmp_path, "reused", reuse=True)
    assert got == expected == 2.0
    assert len(many) == 24
    assert len(few) < 12
    # The job's own modules start anew, and every draw is that of the site and round.
    assert reused == fresh


def test_the_parameter_is_a_truth_value() -> None:
    with pytest.raises(Exception, match="reuse_processes"):
        SimEnv(num_clients=2, reuse_processes="yes")  # type: ignore[arg-type]
