"""Updates that hold only what was changed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import firesteel.client as flare
from firesteel import _tree
from firesteel.client import _changes
from firesteel.errors import ClientError

# Large enough to lie in a file.
LARGE = 40_000


def params() -> dict[str, Any]:
    return {"base": {"w": np.zeros(LARGE, np.float32)}, "head": np.ones(3, np.float32)}


def packed_and_received(native: Any, sent: Any, received: Any, path: str) -> Any:
    there = _tree.pack(received)
    native.write_model(path, there.tensors, tree=there.tree, aliases=there.aliases or None)
    return _tree.pack(sent), native.ModelFile.open(path)


def test_a_partial_update_says_so(start: Any, fake: Any) -> None:
    bridge = start(2, params={"a": np.zeros(2), "b": np.ones(2)})
    flare.receive()
    flare.send(flare.FLModel(params={"a": np.full(2, 5.0)}, partial=True))
    model = flare.receive()
    assert model is not None
    flare.send(flare.FLModel(params=model.params))
    assert [entry["partial"] for entry in bridge.sent] == [True, False]


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        ({"c": np.zeros(2)}, "key-mismatch", "tensor `c` is not in the model"),
        ({"a": np.zeros(3)}, "shape-mismatch", "tensor `a` has shape (3,)"),
        ({"a": np.zeros(2, np.float32)}, "dtype-mismatch", "tensor `a` is F32"),
    ],
)
def test_what_does_not_belong_is_refused_by_the_sender(
    start: Any, sent: Any, code: str, words: str
) -> None:
    start(1, params={"a": np.zeros(2)})
    flare.receive()
    with pytest.raises(ClientError) as caught:
        flare.send(flare.FLModel(params=sent, partial=True))
    assert caught.value.code == code and words in str(caught.value)


def test_there_must_be_something_that_is_unchanged(start: Any, fake: Any) -> None:
    start([fake.Task(None)])
    flare.receive()
    with pytest.raises(ClientError, match="no model was received"):
        flare.send(flare.FLModel(params={"a": np.zeros(2)}, partial=True))
    with pytest.raises(ClientError, match='expected False, True or "auto"'):
        flare.FLModel(params={}, partial="yes")  # type: ignore[arg-type]


def test_auto_leaves_out_what_is_equal(fake: Any, tmp_path: Any) -> None:
    sent = params()
    sent["head"] = sent["head"] + 1
    packed, received = packed_and_received(fake, sent, params(), str(tmp_path / "m"))
    packed = _changes.changed(_changes.checked(packed, received), received)
    assert [tensor[0] for tensor in packed.tensors] == ["head"]
    assert packed.tree is None and list(packed.values) == ["head"]


def test_auto_sees_every_byte(fake: Any, tmp_path: Any) -> None:
    size = 3 * (1 << 20) + 3
    old = {"w": np.zeros(size, np.uint8)}
    for at in (0, size // 2, size - 1):
        new = {"w": np.zeros(size, np.uint8)}
        new["w"][at] = 1
        packed, received = packed_and_received(fake, new, old, str(tmp_path / "m"))
        assert len(_changes.changed(packed, received).tensors) == 1, at
    packed, received = packed_and_received(fake, old, old, str(tmp_path / "m"))
    unchanged = _changes.changed(packed, received)
    assert unchanged.tensors == [] and unchanged.tree == '{"d":[]}'


def test_auto_compares_with_what_was_received_not_with_what_became_of_it(
    start: Any, fake: Any, tmp_path: Any
) -> None:
    path = str(tmp_path / "m.safetensors")
    whole = _tree.pack(params())
    fake.write_model(path, whole.tensors, tree=whole.tree)
    bridge = start([fake.Task(fake.ModelFile.open(path))])

    class Mapped(fake.ModelFile):
        def reopen(self) -> Any:
            return fake.ModelFile.open(path)

    bridge.left[0].model = Mapped(bridge.left[0].model)
    model = flare.receive()
    assert model is not None
    # In place, in the very arrays that were received.
    model.params["base"]["w"] += 1
    flare.send(flare.FLModel(params=model.params, partial="auto"))
    (entry,) = bridge.sent
    back = fake.ModelFile.open(os.path.join(tmp_path, entry["file"]))
    assert entry["partial"] is True
    assert [tensor[0] for tensor in back.tensors()] == ["base.w"]


def test_ties_and_other_values_of_a_partial_update(fake: Any, tmp_path: Any) -> None:
    shared = np.zeros(LARGE, np.float32)
    received = {"emb": shared, "head": shared, "n": 3, "l": [np.ones(2), np.ones(3)]}
    packed, file = packed_and_received(fake, received, received, str(tmp_path / "m"))
    assert packed.aliases == {"head": "emb"}
    new = np.ones(LARGE, np.float32)
    sent = {"emb": new, "head": new, "n": 3, "l": [np.ones(2), np.zeros(3)]}
    tied = _changes.changed(_changes.checked(_tree.pack(sent), file), file)
    assert tied.aliases == {"head": "emb"}
    assert [tensor[0] for tensor in tied.tensors] == ["emb", "l.1"]
    # Names of a list's items are their places: what is gone leaves its place.
    bytes_ = fake.write_model(None, tied.tensors, tree=tied.tree, aliases=tied.aliases)
    back = _tree.unpack(fake.ModelFile.from_bytes(bytes_))
    assert back["n"] == 3 and back["l"][0] is None and back["emb"] is back["head"]
    # By its second name alone, as an adapter of a tied head would.
    alone = _changes.checked(_tree.pack({"head": new}), file)
    assert [tensor[0] for tensor in alone.tensors] == ["head"]
