"""Offers and fetches: what a Ref is, what lies on disk, and between real sites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel.client as flare
from firesteel import stream
from firesteel.errors import ClientError, StoreError, StreamError, TreeError
from firesteel.recipe import FedAvgRecipe, SimEnv

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def job(start: Any) -> Any:
    return start(1, streams=True)


def test_a_ref_is_plain_data_and_comes_back() -> None:
    ref = stream.Ref(site="site-1", id="ab", kind="file", name="x", length=7)
    again = stream.Ref.of(json.loads(json.dumps(ref)))
    assert again == ref and (again.kind, again.length) == ("file", 7)
    # Who knows the id may fetch: it is in no log.
    assert "ab" not in repr(ref)


@pytest.mark.parametrize(
    "value",
    [
        None, "site-1", {}, {"firesteel.ref": 2}, {"firesteel.ref": 1, "site": "a"},
        {"firesteel.ref": 1, "site": 1, "id": "", "kind": "", "name": "", "length": 0},
        {"firesteel.ref": 1, "site": "", "id": "", "kind": "", "name": "", "length": -1},
    ],
)  # fmt: skip
def test_what_is_no_ref_is_refused(job: Any, value: Any) -> None:
    with pytest.raises(StreamError) as caught:
        stream.fetch(value)
    assert caught.value.code == "misuse"


def test_a_file_comes_as_a_file(job: Any, tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(b"hello")
    ref = stream.offer(source, name="big")
    assert (ref.kind, ref.length, ref.site) == ("file", 5, "site-1")
    path = stream.fetch(ref)
    assert os.path.basename(path).endswith("big") and open(path, "rb").read() == b"hello"
    target = tmp_path / "here"
    assert stream.retrieve("site-1", "big", path=target) == str(target)
    assert target.read_bytes() == b"hello" and source.exists()
    stream.offer(source, name="given", move=True)
    assert not source.exists()


def test_params_come_as_params(job: Any, tmp_path: Path) -> None:
    shared = np.arange(4.0)
    ref = stream.offer({"w": shared, "tied": shared, "n": 3}, name="state")
    back = stream.fetch(ref)
    assert back["n"] == 3 and back["w"] is back["tied"]
    np.testing.assert_array_equal(back["w"], shared)
    lone = stream.fetch(stream.offer(np.ones((2, 2))))
    assert lone.shape == (2, 2)
    assert stream.fetch(stream.offer({})) == {}
    # Nothing of it has a name on disk any more.
    assert [p.name for p in tmp_path.glob("offer-*")] == []


def test_items_come_one_by_one(job: Any) -> None:
    made: list[int] = []

    def items() -> Iterator[Any]:
        for at in range(4):
            made.append(at)
            yield {"at": at, "w": np.full(3, at, np.float32)}
        yield b"raw bytes"
        yield b""
        yield [np.ones(1), "text"]

    ref = stream.offer(items())
    assert made == [0, 1, 2, 3] and ref.kind == "items"
    back = stream.fetch(ref)
    assert len(back) == 7
    for _ in range(2):
        got = list(back)
        assert [item["at"] for item in got[:4]] == [0, 1, 2, 3]
        assert got[3]["w"].tolist() == [3, 3, 3]
        assert got[4:6] == [b"raw bytes", b""] and got[6][1] == "text"
    assert list(stream.fetch(stream.offer([]))) == []


def test_a_damaged_file_of_items_is_noticed(job: Any, fake: Any) -> None:
    ref = stream.offer([b"one", b"two", {"a": np.ones(2)}])
    whole = fake.StreamLink.offers[ref.id].data

    def reading(data: bytes) -> None:
        file = fake.StreamLink.offers[ref.id]
        file.data, file.length = data, len(data)
        list(stream.fetch(ref))

    reading(whole)
    huge = whole[:64] + (2**63).to_bytes(8, "little") + whole[72:]
    past = whole[:64] + (len(whole)).to_bytes(8, "little") + whole[72:]
    unknown = whole[:72] + b"\x09" + whole[73:]
    counted = whole[:-64] + (9).to_bytes(8, "little") + whole[-56:]
    for data in (
        b"", whole[:64], whole[:-64], whole[:-1], b"x" + whole[1:], huge, past, unknown, counted,
        whole[:16] + b"\x02" + whole[17:], whole[:-64] + bytes(64) + whole[-64:],
    ):  # fmt: skip
        with pytest.raises((StreamError, OSError)):
            reading(data)


def test_what_cannot_be_offered_is_refused_by_name(job: Any, tmp_path: Path) -> None:
    with pytest.raises(TreeError) as caught:
        stream.offer([{"a": np.ones(1)}, {"b": {"c": object()}}])
    assert caught.value.path == "items[1]['b']['c']"
    with pytest.raises(StoreError, match="no file"):
        stream.offer(tmp_path / "nothing")
    for thing in (3, b"bytes", None):
        with pytest.raises(StreamError, match="cannot be offered"):
            stream.offer(thing)  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="under a name"):
        stream.offer(tmp_path)
    with pytest.raises(StreamError, match="`move` is for files"):
        stream.offer([b""], move=True)

    def broken() -> Iterator[Any]:
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stream.offer(broken())
    # Nothing half-written stays.
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "offer"))] == []


def test_refusals_say_what_the_agent_said_and_the_link_is_used_again(job: Any, fake: Any) -> None:
    for _ in range(3):
        with pytest.raises(StreamError) as caught:
            stream.retrieve("site-2", "nothing")
        assert caught.value.code == "not-offered"
    stream.withdraw(stream.offer([b""]))
    assert len(fake.StreamLink.open_links) == 1
    flare.shutdown()
    assert fake.StreamLink.open_links == []


def test_threads_fetch_at_the_same_time(job: Any, fake: Any) -> None:
    ref = stream.offer([b"x"])
    both = threading.Barrier(2, timeout=20)
    original = fake.StreamLink.fetch

    def together(self: Any, *args: Any, **kwargs: Any) -> Any:
        both.wait()
        return original(self, *args, **kwargs)

    fake.StreamLink.fetch = together
    try:
        threads = [threading.Thread(target=stream.fetch, args=(ref,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        fake.StreamLink.fetch = original
    assert not both.broken and len(fake.StreamLink.open_links) == 2


def test_without_a_job_or_streams_it_says_so(start: Any, monkeypatch: Any) -> None:
    with pytest.raises(ClientError, match=r"before flare.init\(\)"):
        stream.retrieve("site-1", "x")
    start(1)
    with pytest.raises(StreamError, match="serves no streams"):
        stream.retrieve("site-1", "x")
    flare.shutdown()
    with pytest.raises(ClientError):
        stream.retrieve("site-1", "x")


# -- between real sites ------------------------------------------------------------

SITES = """
import os, sys
import numpy as np
import firesteel.client as flare
from firesteel import stream
from firesteel.errors import StreamError
flare.init()
site = flare.get_site_name()
while flare.is_running():
    model = flare.receive()
    if site == "site-1":
        open("plain.bin", "wb").write(bytes(range(256)) * 1000)
        os.makedirs("results/sub", exist_ok=True)
        open("results/sub/a.csv", "w").write("1,2")
        os.symlink("/etc/passwd", "results/link")
        stream.offer("plain.bin", name="plain")
        open("moved.bin", "wb").write(b"moved")
        stream.offer("moved.bin", name="moved", move=True)
        stream.offer("results", name="results")
        stream.offer({"w": np.arange(100_000.0)}, name="params")
        stream.offer(({"at": np.full(5, at)} for at in range(3)), name="items", times=1)
        stream.offer([b"x"], name="private", sites=["site-3"])
    else:
        def get(name):
            return stream.retrieve("site-1", name, wait=60)
        assert open(get("plain"), "rb").read() == bytes(range(256)) * 1000
        moved = get("moved")
        assert open(moved, "rb").read() == b"moved"
        # A second name of the same file: no byte was copied.
        assert os.stat(moved).st_nlink == 2
        assert open(get("results/sub/a.csv")).read() == "1,2"
        assert get("params")["w"].sum() == np.arange(100_000.0).sum()
        assert [int(item["at"][0]) for item in get("items")] == [0, 1, 2]
        def refused(name, code):
            try:
                stream.retrieve("site-1", name)
            except StreamError as error:
                assert error.code == code, (name, error.code)
            else:
                raise AssertionError(name)
        refused("private", "not-offered")
        refused("items", "not-offered")
        for name in ("results/../plain.bin", "/etc/passwd", "results/sub\\0", "results/" + "x" * 2000):
            refused(name, "bad-name")
        refused("results/link", "no-file")
        refused("results/none", "no-file")
        with open("plain.bin", "ab") as file:
            file.write(b"more")
        refused("plain", "changed")
    flare.send(flare.FLModel(params={k: v + 1 for k, v in model.params.items()}))
"""


def federate(script: str, where: Path, monkeypatch: Any, **parameters: Any) -> Any:
    monkeypatch.chdir(where)
    (where / "client.py").write_text(script)
    given: dict[str, Any] = {
        "name": "streams", "train_script": "client.py", "min_clients": 2, "num_rounds": 1,
        "model": {"w": np.zeros(3, np.float32)}, **parameters,
    }  # fmt: skip
    return FedAvgRecipe(**given).execute(SimEnv(num_clients=2, extra={"console": "off"}))


@pytest.mark.e2e
def test_sites_offer_and_fetch_in_every_way(tmp_path: Path, monkeypatch: Any) -> None:
    run = federate(SITES, tmp_path, monkeypatch)
    assert run.get_status() == "completed"


IN_TURN = """
import firesteel.client as flare
from firesteel import stream
flare.init()
while flare.is_running():
    model = flare.receive()
    site = flare.get_site_name()
    # One worker: whoever is first has ended before the second begins.
    if site == "site-1":
        stream.offer([b"from site-1"], name="x")
    else:
        assert list(stream.retrieve("site-1", "x")) == [b"from site-1"]
    flare.send(flare.FLModel(params={k: v + 1 for k, v in model.params.items()}))
"""


@pytest.mark.e2e
def test_an_offer_outlives_the_process_that_made_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(IN_TURN)
    recipe = FedAvgRecipe(
        name="turns", train_script="client.py", min_clients=2, num_rounds=1, launch_once=False,
        model={"w": np.zeros(3, np.float32)},
    )  # fmt: skip
    env = SimEnv(num_clients=2, num_workers=1, extra={"console": "off"})
    assert recipe.execute(env).get_status() == "completed"


# The peak of writing and reading many items: one of them, not all.
PEAK = """
import os, sys
import numpy as np
from firesteel import _native, _tree, stream

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

def anonymous():
    return status("RssAnon")

piece, count = 8 << 20, 24
peaks = []
def items():
    for at in range(count):
        item = {{"w": np.full(piece // 4, at, np.float32)}}
        peaks.append(anonymous())
        yield item
        del item

before = anonymous()
stream._write_items(sys.argv[1], items())
written = max(peaks) - before
read = 0
before = anonymous()
for item in stream.Items(_native.StreamFile.open(sys.argv[1], "items")):
    assert item["w"][-1] == item["w"][0]
    item["w"] += 1     # copied on write: the most that an item can cost
    read = max(read, anonymous() - before)
print(written, read, os.path.getsize(sys.argv[1]))
"""


@pytest.mark.e2e
def test_items_take_the_memory_of_one_item(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK).format(), str(tmp_path / "x.items")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written, read, size = map(int, done.stdout.split())
    assert size > 24 * (8 << 20)
    # The next is made, or mapped, while the last is let go.
    assert written < 3 * (8 << 20), f"{written / 2**20:.0f} MiB"
    assert read < 3 * (8 << 20), f"{read / 2**20:.0f} MiB"


SHARED = """
import json, os, time
import firesteel.client as flare
flare.init()

def mapped():
    # What of the model's file is in this process, and whose it is.
    found, ours = {}, False
    for line in open("/proc/self/smaps"):
        first = line.split()[0]
        if not first.endswith(":"):
            ours = "safetensors" in line
            if ours:
                found["file"] = line.split()[3:5]
        elif ours and first in ("Pss:", "Rss:", "Private_Dirty:"):
            found[first] = found.get(first, 0) + int(line.split()[1]) * 1024
    return found

def all_are(what):
    open(f"{what}-{flare.get_site_name()}", "w").close()
    until = time.monotonic() + 60
    while not all(os.path.exists(f"{what}-site-{n}") for n in range(1, 5)):
        assert time.monotonic() < until
        time.sleep(0.01)

while flare.is_running():
    model = flare.receive()
    assert float(model.params["w"].sum()) > 0      # every page is touched
    all_are("touched")
    found = mapped()
    all_are("measured")
    with open(f"found-{flare.get_site_name()}.json", "w") as file:
        json.dump(found, file)
    flare.send(flare.FLModel(params={"s": model.params["s"] + 1}, partial=True))
"""


@pytest.mark.e2e
def test_one_mapped_copy_of_the_model_serves_all_sites(tmp_path: Path, monkeypatch: Any) -> None:
    size = 64 << 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(SHARED)
    recipe = FedAvgRecipe(
        name="shared", train_script="client.py", min_clients=4, num_rounds=1,
        model={"w": np.ones(size // 4, np.float32), "s": np.zeros(1, np.float32)},
    )  # fmt: skip
    recipe.execute(SimEnv(num_clients=4, num_workers=4, extra={"console": "off"}))
    found = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("found-*.json"))]
    assert len(found) == 4
    # The very same file, every page of it in all four and in none a page of its own.
    assert len({tuple(f["file"]) for f in found}) == 1
    assert all(f["Rss:"] >= size for f in found), found
    assert all(f["Private_Dirty:"] < size // 64 for f in found), found
    # Shared by four at least, so that together they hold no more than one copy.
    assert sum(f["Pss:"] for f in found) <= 1.02 * size, found
