"""Jobs whose server and sites are processes of their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import ROOT, anonymous, federation, job, model, until
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


def last(fed: Any) -> str:
    return digest(fed.run / "models/last.safetensors")


def run_through(place: Path, spec: dict[str, Any], *args: str) -> tuple[str, list[dict[str, Any]], str]:
    """A job from its start to its end: its last model, its records and its log."""
    place.mkdir()
    with federation(place, spec, *args) as fed:
        for name in spec["sites"]:
            fed.site(name)
        assert fed.ended()["status"] == "completed"
        fed.server.wait()
        return last(fed), fed.rounds(), fed.log()


def test_updates_without_room_are_folded_from_their_sites_with_the_same_bits(tmp_path: Path) -> None:
    spec = training(tmp_path, 3, 2, 2 << 20)
    spooled, rounds, _ = run_through(tmp_path / "spooled", spec)
    assert all(site["received"]["bytes"] > 2_000_000 for site in rounds[0]["sites"])
    live, _, log = run_through(tmp_path / "live", spec, "--spool", "1")
    assert log.count("the spool is full") == 6, log
    assert live == spooled
    some, _, log = run_through(tmp_path / "some", spec, "--spool", str(5 << 20))
    assert log.count("the spool is full") == 2, log
    assert some == spooled


def test_filters_run_on_both_ways_and_halve_what_travels(tmp_path: Path) -> None:
    size = 4 << 20
    spec = training(tmp_path, 2, 2, size)
    half = {"filter": {"kind": "quantize", "scheme": "fp16"}}
    spec["filters"] = {"task_data": [half], "result": [half]}
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as proxy:
        fed.site("site-1")
        fed.site("site-2", connect=proxy.address)
        assert fed.ended()["status"] == "completed"
        received = [site["received"] for site in fed.rounds()[0]["sites"]]
        assert all(abs(one["bytes"] - size / 2) < size / 50 for one in received), received
        assert max(proxy.up, proxy.down) < 1.1 * size
        found = tensors(fed.run / "models/last.safetensors")
        for key, value in scaled(spec, 1.5**2).items():
            assert found[key].dtype == np.float32
            np.testing.assert_allclose(found[key], value, rtol=2e-3, atol=1e-4)


def test_a_job_that_no_disk_could_hold_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    initial = tmp_path / "initial.safetensors"
    model(initial, 1 << 20, tensors=1)
    with initial.open("r+b") as file:
        file.truncate(1 << 43)
    with pytest.raises(AssertionError) as refused, federation(tmp_path, job(2, 1, initial)):
        pass
    assert "the server's run directory" in str(refused.value)
    assert "TiB" in str(refused.value)


@pytest.mark.parametrize("sites", [2, 8])
@pytest.mark.parametrize("spool", [None, 300 << 20], ids=["spooled", "some-live"])
def test_rss_server_over_its_idle(sites: int, spool: int | None, tmp_path: Path) -> None:
    size = 256 << 20
    initial = model(tmp_path / "initial.safetensors", size)
    answer = model(tmp_path / "answer.safetensors", size, fill=2)
    args = [] if spool is None else ["--spool", str(spool)]
    with federation(tmp_path, job(sites, 2, initial), *args) as fed:
        idle = anonymous(fed.server.pid)
        fed.stubs(fed.spec["sites"], answer)
        peak = 0

        def over() -> bool:
            nonlocal peak
            if fed.server.process.poll() is not None:
                return True
            peak = max(peak, anonymous(fed.server.pid))
            return False

        until(over, "the job ends", patience=170)
        assert fed.ended()["status"] == "completed"
        held = (peak - idle) / 2**20
        print(f"{sites} sites: {held:.0f} MiB over {idle / 2**20:.0f}")
        # Per site two windows each way, with what TLS and the multiplexer hold, and
        # its share of what is folded live; the same whatever the model's size.
        limit = 48 + 10 * sites + (0 if spool is None else 64 + 16 * sites)
        assert held < limit, f"{held:.0f} MiB, the limit is {limit}"


def test_a_site_that_is_interrupted_leaves_and_is_not_waited_for(tmp_path: Path) -> None:
    spec = training(tmp_path, 2, 2, 1 << 20)
    spec["min_clients"] = 1
    spec["policy"] = {"grace_s": 0.0}
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as proxy:
        proxy.rate = 1e5
        fed.site("site-1", connect=proxy.address)
        site = fed.site("site-2")
        until(lambda: trained(tmp_path, "site-2") == [0], "site-2 has trained")
        site.interrupt()
        assert site.wait() == 0
        proxy.rate = None
        # By default a site that is lost is waited for during a quarter of an hour.
        assert fed.ended()["status"].startswith("completed")
        fed.logged("the site closed its connection")


def test_a_site_that_leaves_and_comes_back_in_the_round_still_has_its_model(tmp_path: Path) -> None:
    spec = training(tmp_path, 2, 1, SIZE)
    spec["min_clients"] = 1
    with federation(tmp_path, spec) as fed, Proxy(fed.address) as slow, Proxy(fed.address) as proxy:
        # The round stays open: of this one nothing comes.
        slow.rate = 1e5
        other = fed.site("site-1", connect=slow.address)
        site = fed.site("site-2", connect=proxy.address)
        until(lambda: trained(tmp_path, "site-2") == [0], "site-2 has trained")
        proxy.rate = 1e5
        site.interrupt()
        assert site.wait() == 0, site.told()
        proxy.rate = None
        fed.site("site-2", connect=proxy.address)
        until(lambda: trained(tmp_path, "site-2") == [0, 0], f"it trains again\n{other.told()}")
        slow.rate = None
        assert fed.ended()["status"].startswith("completed")
        assert proxy.down < SIZE + SIZE // 4, proxy.down


STREAMING = '''
import hashlib
import json
import sys
import numpy as np
import firesteel.client as flare
from firesteel import StreamError, stream

place, size = sys.argv[1], int(sys.argv[2])


def tell(**found):
    with open(f"{place}/{flare.get_site_name()}.json", "w") as file:
        json.dump(found, file)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refused(site, name, **more):
    try:
        return stream.retrieve(site, name, **more)
    except StreamError as error:
        return [error.code, str(error)]


def there():
    import os
    os.mkdir(f"{place}/folder")
    for name, content in [("big", np.random.default_rng(1).bytes(size)), ("empty", b""), ("folder/a", b"a")]:
        with open(f"{place}/{name}", "wb") as file:
            file.write(content)
    stream.offer(f"{place}/big", name="once", times=1)
    stream.offer(f"{place}/empty", name="empty")
    stream.offer(f"{place}/folder", name="folder")
    stream.offer(f"{place}/big", name="not yours", sites=["site-1"])
    stream.offer([b"for you"], name="yours", sites=["site-2"])
    items = ({"n": np.full(1000, n, np.float32)} for n in range(3))
    refs = {
        "file": stream.offer(f"{place}/big"),
        "items": stream.offer(items),
        "params": stream.offer({"w": np.arange(size // 8, dtype=np.float32)}),
    }
    stream.offer([json.dumps(refs).encode()], name="refs")
    # Until the other one has it all.
    stream.retrieve("site-2", "done", wait=60)
    tell(big=digest(f"{place}/big"))


def here():
    refs = json.loads(list(stream.retrieve("site-1", "refs", wait=60))[0])
    found = {"once": digest(stream.retrieve("site-1", "once"))}
    found["again"] = refused("site-1", "once")
    found["file"] = digest(stream.fetch(refs["file"]))
    found["items"] = [float(item["n"].sum()) for item in stream.fetch(refs["items"])]
    found["params"] = float(stream.fetch(refs["params"])["w"][-1])
    found["yours"] = list(stream.retrieve("site-1", "yours"))[0].decode()
    with open(stream.retrieve("site-1", "empty"), "rb") as file:
        found["empty"] = len(file.read())
    with open(stream.retrieve("site-1", "folder/a", path=f"{place}/kept"), "rb") as file:
        found["inside"] = file.read().decode()
    for name in ("folder/../big", "folder", "folder/none", "not yours"):
        found[name] = refused("site-1", name)
    found["nobody"] = refused("site-9", "big")
    with open(f"{place}/big", "ab") as file:
        file.write(b"more")
    try:
        found["changed"] = stream.fetch(refs["file"])
    except StreamError as error:
        found["changed"] = [error.code, str(error)]
    stream.offer([b""], name="done")
    tell(**found)


flare.init()
while flare.is_running():
    model = flare.receive()
    there() if flare.get_site_name() == "site-1" else here()
    flare.send(flare.FLModel(params=model.params))
'''


def streaming(place: Path, size: int) -> dict[str, Any]:
    """A job whose second site fetches what the first one offers."""
    script = place / "stream.py"
    script.write_text(STREAMING)
    initial = model(place / "initial.safetensors", 1 << 16)
    trainer = {"script": str(script), "args": [str(place), str(size)], "mode": "warm"}
    return job(2, 1, initial, name="stream", trainer=trainer)


def test_streams_between_sites_go_through_the_server(tmp_path: Path) -> None:
    size = 5 << 20
    with federation(tmp_path, streaming(tmp_path, size)) as fed:
        fed.site("site-2")
        fed.site("site-1")
        assert fed.ended()["status"] == "completed"
        found = json.loads((tmp_path / "site-2.json").read_text())
        original = hashlib.sha256(np.random.default_rng(1).bytes(size)).hexdigest()
        assert found["once"] == found["file"] == original
        assert found["items"] == [0.0, 1000.0, 2000.0]
        assert found["params"] == size // 8 - 1
        assert (found["empty"], found["inside"]) == (0, "a")
        assert found["yours"] == "for you"
        # The sentences are those of a simulation.
        assert found["again"] == ["not-offered", found["again"][1]]
        assert found["again"][1].startswith('site site-1 offers nothing named "once" to this site')
        assert found["folder/../big"][0] == "bad-name"
        assert "leads upwards (..)" in found["folder/../big"][1]
        assert found["folder"][0] == "bad-name"
        assert found["folder/none"][0] == "no-file"
        assert "there is no such file" in found["folder/none"][1]
        assert found["not yours"][0] == "not-offered"
        assert found["nobody"][0] == "not-offered"
        assert found["changed"][0] == "changed"
        # Nothing of what was fetched stays with the agent.
        assert not list((tmp_path / "sites/site-2/objects").rglob("digest-*"))


@pytest.mark.parametrize("cut", ["site-1", "site-2"])
def test_a_stream_that_is_cut_goes_on_at_the_byte(cut: str, tmp_path: Path) -> None:
    with federation(tmp_path, streaming(tmp_path, SIZE)) as fed, Proxy(fed.address) as proxy:
        proxy.rate = 1.6e7
        for name in ("site-1", "site-2"):
            fed.site(name, connect=proxy.address if name == cut else None)
        way = "up" if cut == "site-1" else "down"
        for part in range(1, 4):
            until(lambda part=part: getattr(proxy, way) > part * SIZE // 4, "a part is there")
            proxy.cut()
        proxy.rate = None
        assert fed.ended()["status"] == "completed"
        found = json.loads((tmp_path / "site-2.json").read_text())
        # Offered for one fetch, which the cuts did not make more.
        assert found["once"] == hashlib.sha256(np.random.default_rng(1).bytes(SIZE)).hexdigest()
        assert found["again"][0] == "not-offered"
        # Twice the file and once the params, which are half of it.
        assert getattr(proxy, way) < 3 * SIZE, getattr(proxy, way)
