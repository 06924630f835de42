"""Params trees: what goes through, and what is refused by name."""

from __future__ import annotations

import collections
import json
from typing import Any

import numpy as np
import pytest

from firesteel import _tree
from firesteel.errors import TreeError


def through(native: Any, params: Any, kind: str = "numpy") -> Any:
    packed = _tree.pack(params)
    data = native.write_model(
        None, packed.tensors, tree=packed.tree, aliases=packed.aliases or None
    )
    return _tree.unpack(native.ModelFile.from_bytes(data), kind)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and isinstance(a, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


TREES = {
    "flat": {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)},
    "empty": {},
    "one array": np.arange(4.0),
    "list of arrays": [np.ones(2), np.zeros((3, 1), np.int8)],
    "mixed order": {"small": np.ones(3, np.int8), "wide": np.ones(2), "n": np.array(3)},
    "names that need care": {"a.b": np.ones(1), "a": {"b": np.zeros(1)}, "__metadata__": np.ones(2)},
    "values": {
        "s": "é\n", "i": -(2**63), "f": 1.5, "t": True, "x": b"\x00\xff", "n": None,
        "nan": float("nan"), "inf": float("inf"), "u": (1, [2.0, "x"]), "": {"": []},
    },
    "shapes": {"scalar": np.array(3.0), "none": np.zeros((0, 4), np.float16), "deep": np.ones((1,) * 8)},
    "dtypes": {
        code: np.arange(5).astype(code)
        for code in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back_as_it_was(fake: Any, name: str) -> None:
    assert same(through(fake, TREES[name]), TREES[name])


def test_a_flat_dict_needs_no_tree() -> None:
    assert _tree.pack(TREES["flat"]).tree is None
    assert _tree.pack(TREES["mixed order"]).tree is not None


def test_arrays_are_writable_views_of_the_file(fake: Any) -> None:
    packed = _tree.pack({"w": np.ones(4)})
    file = fake.ModelFile.from_bytes(fake.write_model(None, packed.tensors))
    array = _tree.unpack(file)["w"]
    array[0] = 7
    assert np.frombuffer(file, np.float64, offset=len(file) - 32)[0] == 7
    assert _tree.unpack(file)["w"][0] == 7


def test_tied_arrays_are_sent_once_and_come_back_as_one(fake: Any) -> None:
    weight = np.ones((3, 2))
    params = {"in": weight, "out": weight, "same bytes": weight.copy(), "part": weight[:2]}
    packed = _tree.pack(params)
    assert packed.aliases == {"out": "in"}
    assert len(packed.tensors) == 3
    back = through(fake, params)
    assert back["in"] is back["out"]
    assert back["in"] is not back["same bytes"]
    assert same(back, params)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::2],
        np.arange(4, dtype=">f4"),
        np.array(5, dtype=">i2"),
        np.broadcast_to(np.float32(2), (2, 2)),
        np.asfortranarray(np.arange(6, dtype=">u8").reshape(2, 3)),
    ],
)
def test_any_memory_order_arrives_as_values(fake: Any, array: Any) -> None:
    back = through(fake, {"a": array})["a"]
    assert back.dtype == array.dtype.newbyteorder("<")
    assert np.array_equal(back, array)


class Net:
    def state_dict(self) -> dict[str, Any]:
        return {}


class Frame:
    def to_numpy(self) -> Any: ...


Point = collections.namedtuple("Point", "x y")
LOOP: list[Any] = []
LOOP.append(LOOP)

REFUSED = [
    ({"a": [1, 2, 3, Frame()]}, "params['a'][3]: a test_tree.Frame cannot be sent", "to_numpy()"),
    ({"a": Net()}, "params['a']: a test_tree.Net", "state_dict()"),
    ({"a": {1: np.ones(2)}}, "params['a']: has the key 1, a int", "use '1'"),
    ({"a": {1, 2}}, "a set cannot be sent", "list"),
    ({"a": Point(1, 2)}, "a test_tree.Point", "_asdict"),
    ({"a": 1j}, "a complex", "two floats"),
    ({"a": 2**63}, "does not fit 64 bits", "string"),
    ({"a": np.array([{}])}, "params['a']: an array of dtype object", "Python objects"),
    ({"a": np.array(["x"])}, "dtype <U1", "tolist"),
    ({"a": np.array(["2020"], "M8[D]")}, "datetime64", "int64"),
    ({"a": np.ones(2, complex)}, "complex128", "array.real"),
    ({"a": np.ones(2, np.longdouble)}, "params['a']: an array of dtype", "np.float64"),
    ({"a": np.zeros(2, [("x", "f4")])}, "cannot be sent", ""),
    ({"a": np.ma.masked_array([1.0, 2.0])}, "masked array", "filled"),
    ({"a": "\ud800"}, "not valid text", ""),
    (LOOP, "nested more than 64 deep", "contains itself"),
    ({"a": lambda: 1}, "a function cannot be sent", "dict, list"),
]


@pytest.mark.parametrize(("params", "sentence", "hint"), REFUSED)
def test_what_cannot_be_sent_is_named(params: Any, sentence: str, hint: str) -> None:
    with pytest.raises(TreeError) as caught:
        _tree.pack(params)
    assert sentence in caught.value.message
    assert hint in caught.value.hint


def test_much_text_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TreeError, match="more than 16 MiB"):
        _tree.pack({"a": ["x" * (1 << 20)] * 17})


def test_ml_dtypes_arrays_keep_their_dtype(fake: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    params = {
        "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
        "e4m3": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
        "e5m2": np.arange(3).astype(ml_dtypes.float8_e5m2),
    }
    assert same(through(fake, params), params)


def test_bf16_without_ml_dtypes_says_what_to_install(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fake.write_model(None, [("w", "BF16", (2,), b"\0\0\0\0")])
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(TreeError) as caught:
        _tree.unpack(fake.ModelFile.from_bytes(data))
    assert "`w` is BF16" in caught.value.message
    assert "ml_dtypes" in caught.value.hint


def test_the_tree_is_json_of_one_key_per_node() -> None:
    tree = _tree.pack({"a": [1, (None, 0.5)], "w": np.ones(1)}).tree
    assert tree is not None
    assert json.loads(tree) == {
        "d": [["a", {"l": [{"i": "1"}, {"u": [{"n": 0}, {"f": 0.5}]}]}], ["w", {"t": "w"}]]
    }


@pytest.mark.torch
def test_torch_tensors_keep_dtype_layout_and_ties(fake: Any) -> None:
    import torch

    names = ["bool", "uint8", "int16", "int64", "float16", "bfloat16", "float32", "float64"]
    names += ["float8_e4m3fn", "float8_e5m2"]
    params: dict[str, Any] = {n: torch.arange(4).to(getattr(torch, n)) for n in names}
    params["t"] = torch.arange(6.0).reshape(2, 3).T
    params["grad"] = torch.nn.Parameter(torch.ones(2))
    params["tied"] = params["grad"]
    params["scalar"] = torch.tensor(3)
    params["none"] = torch.zeros(0, 2)
    back = through(fake, params, "torch")
    assert list(back) == list(params)
    for name, tensor in params.items():
        assert back[name].dtype == tensor.dtype, name
        assert back[name].shape == tensor.shape, name
        assert torch.equal(back[name].to(torch.float64), tensor.detach().to(torch.float64)), name
    assert back["tied"] is back["grad"]
    # Each has a storage of its own: saving one does not save the file.
    assert back["t"].untyped_storage().nbytes() == 24
    back["t"][0, 0] = 9


@pytest.mark.torch
def test_torch_tensors_that_cannot_be_sent_are_named() -> None:
    import torch

    for tensor, sentence in [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
    ]:
        with pytest.raises(TreeError, match=sentence):
            _tree.pack({"a": tensor})
