"""Jobs whose server and sites are processes of their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import ROOT, federation, job, model, until
from proxy import Proxy

pytestmark = pytest.mark.e2e

DIGITS = ROOT / "examples/digits"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The digits example in a simulation: its job, and the directory of its run."""
    from sklearn.datasets import load_digits

    from firesteel.data import partition, save_partitions
    from firesteel.recipe import FedAvgRecipe, SimEnv

    place = tmp_path_factory.mktemp("simulated")
    X, y = load_digits(return_X_y=True)
    parts = partition((X / 16).astype(np.float32), y, 3, by="dirichlet", alpha=0.3, seed=7, least=20)
    env = SimEnv(
        clients=list(parts),
        data=save_partitions(parts, place / "data", name="digits"),
        seed=7,
        workspace_root=place / "runs",
    )
    rng = np.random.default_rng(7)
    # Too large for a message: it travels as a file.
    params = {
        "hidden.weight": rng.normal(0, 0.1, (64, 300)).astype(np.float32),
        "hidden.bias": np.zeros(300, np.float32),
        "output.weight": rng.normal(0, 0.1, (300, 10)).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }
    recipe = FedAvgRecipe(
        name="digits",
        model=params,
        train_script=DIGITS / "client.py",
        train_args="--epochs 1 --lr 0.05",
        min_clients=3,
        num_rounds=4,
        framework="numpy",
    )
    run = recipe.execute(env)
    run_dir = Path(run.get_result())
    spec = json.loads((run_dir / "job.json").read_text())
    spec["initial_model"] = str(run_dir / "models/initial.safetensors")
    return spec, run_dir


def test_processes_give_the_same_bits_as_the_simulation(
    simulated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    spec, run_dir = simulated
    with federation(tmp_path, spec) as fed:
        sites = [fed.site(name) for name in spec["sites"]]
        assert fed.ended()["status"] == "completed"
        assert fed.server.wait() == 0
        assert [site.wait() for site in sites] == [0, 0, 0]
        for name in ("last", "best"):
            ours = fed.run / f"models/{name}.safetensors"
            assert digest(ours) == digest(run_dir / f"models/{name}.safetensors"), name
        assert len(fed.rounds()) == 4


TRAINER = '''
import sys
import numpy as np
import firesteel.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    with open(sys.argv[1] + "/" + flare.get_site_name() + ".rounds", "a") as rounds:
        print(model.current_round, file=rounds)
    share = np.float32(int(flare.get_site_name()[-1]))
    flare.send(flare.FLModel(params={k: v * share for k, v in model.params.items()}))
'''


def training(place: Path, sites: int, rounds: int, size: int) -> dict[str, Any]:
    """A job whose sites multiply the model by their number."""
    script = place / "train.py"
    script.write_text(TRAINER)
    initial = model(place / "initial.safetensors", size)
    trainer = {"script": str(script), "args": [str(place)], "mode": "warm"}
    return job(sites, rounds, initial, name="scale", trainer=trainer)


def trained(place: Path, site: str) -> list[int]:
    """The rounds that a site's script has seen, in order."""
    path = place / f"{site}.rounds"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def tensors(path: Path) -> dict[str, np.ndarray]:
    from firesteel._models import load_model

    return load_model(path)


def scaled(spec: dict[str, Any], by: float) -> dict[str, np.ndarray]:
    return {key: value * np.float32(by) for key, value in tensors(Path(spec["initial_model"])).items()}


def assert_equal(ours: Path, expected: dict[str, np.ndarray]) -> None:
    found = tensors(ours)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, err_msg=key)


SIZE = 16 << 20


def test_an_agent_killed_in_mid_upload_goes_on_where_it_was(tmp_path: Path) -> None:
    spec = training(tmp_path, 2, 2, SIZE)
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as proxy:
        fed.site("site-1")
        site = fed.site("site-2", connect=proxy.address)
        until(lambda: trained(tmp_path, "site-2") == [0], "the first round is trained")
        proxy.rate = 2e6
        until(lambda: proxy.up > SIZE // 4, f"a part of the update is there\n{site.told()}")
        site.kill()
        proxy.cut()
        proxy.rate = None
        fed.site("site-2", connect=proxy.address)
        assert fed.ended()["status"] == "completed"
        # What it had trained was not trained again, nor was it sent twice as a whole.
        assert trained(tmp_path, "site-2") == [0, 1]
        assert proxy.up < 2 * SIZE + SIZE // 2, proxy.up
        assert_equal(fed.run / "models/last.safetensors", scaled(spec, 1.5**2))


def test_cuts_in_mid_transfer_cost_neither_training_nor_bytes(tmp_path: Path) -> None:
    spec = training(tmp_path, 2, 1, SIZE)
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as proxy:
        proxy.rate = 8e6
        fed.site("site-1")
        fed.site("site-2", connect=proxy.address)
        for part in range(1, 5):
            until(lambda part=part: proxy.down > part * SIZE // 5, "a part of the model is there")
            proxy.cut()
        for part in range(1, 5):
            until(lambda part=part: proxy.up > part * SIZE // 5, "a part of the update is there")
            proxy.cut()
        assert fed.ended()["status"] == "completed"
        assert trained(tmp_path, "site-2") == [0]
        # Windows that were on their way, eight times.
        assert max(proxy.up, proxy.down) < SIZE * 1.5, (proxy.up, proxy.down)
        assert_equal(fed.run / "models/last.safetensors", scaled(spec, 1.5))


@pytest.mark.parametrize("way", ["up", "down"])
def test_an_abort_ends_a_transfer_that_would_take_minutes(way: str, tmp_path: Path) -> None:
    spec = training(tmp_path, 2, 1, SIZE)
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as proxy:
        slow = 1e5
        proxy.rate = slow if way == "down" else None
        sites = [fed.site("site-1"), fed.site("site-2", connect=proxy.address)]
        if way == "up":
            until(lambda: trained(tmp_path, "site-2") == [0], "the first round is trained")
            proxy.rate = slow
        before = getattr(proxy, way)
        until(lambda: getattr(proxy, way) > before + 2 * 65536, "the transfer is on its way")
        fed.server.interrupt()
        assert fed.ended(patience=10)["status"] == "aborted"
        assert fed.server.wait(10) == 1
        for site in sites:
            assert site.wait(10) == 0, site.told()
