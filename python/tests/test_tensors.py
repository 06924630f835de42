"""Tensors end to end: kinds, dtypes, ties, and what writing them costs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel.client as flare
from firesteel import _tree
from firesteel.errors import TreeError
from firesteel.recipe import FedAvgRecipe, SimEnv

if TYPE_CHECKING:
    from pathlib import Path


def through(native: Any, params: Any, kind: str = "numpy", names: Any = None) -> Any:
    packed = _tree.pack(params)
    data = native.write_model(
        None, packed.tensors, tree=packed.tree, aliases=packed.aliases or None,
        metadata=packed.kinds(),
    )  # fmt: skip
    file = native.ModelFile.from_bytes(data)
    return _tree.unpack(file, kind, _tree.torch_names(file) if names is None else names)


class KerasLike:
    """What is used of a Keras model: `layers`, `name`, `get_weights`, `set_weights`."""

    class Layer:
        def __init__(self, name: str, weights: list[Any]) -> None:
            self.name, self.weights = name, weights

        def get_weights(self) -> list[Any]:
            return self.weights

        def set_weights(self, weights: list[Any]) -> None:
            self.weights = weights

    def __init__(self) -> None:
        self.layers = [
            self.Layer("dense", [np.ones((2, 3), np.float32), np.zeros(3, np.float32)]),
            self.Layer("relu", []),
        ]

    def get_weights(self) -> list[Any]:
        return [w for layer in self.layers for w in layer.weights]


def test_a_keras_model_is_sent_as_its_layers_weights(start: Any, fake: Any) -> None:
    bridge = start(1, params={"x": np.zeros(1)}, exchange_format="keras_layer_weights")
    flare.receive()
    flare.send(flare.FLModel(params=KerasLike()))
    back = _tree.unpack(fake.ModelFile.from_bytes(bridge.sent[0]["model"]))
    assert list(back) == ["dense", "relu"] and back["relu"] == []
    model = KerasLike()
    for layer in model.layers:
        layer.set_weights(back[layer.name])
    assert model.layers[0].weights[0].shape == (2, 3)


def test_raw_keeps_each_array_what_it_was(start: Any, fake: Any) -> None:
    bridge = start(1, exchange_format="raw")
    flare.receive()
    flare.send(flare.FLModel(params={"a": np.ones(2), "s": "x"}))
    assert "firesteel.torch" not in fake.ModelFile.from_bytes(bridge.sent[0]["model"]).metadata()


@pytest.mark.torch
def test_mixed_kinds_come_back_as_they_were(fake: Any, start: Any) -> None:
    import torch

    given = {"t": torch.ones(2, dtype=torch.bfloat16), "n": np.ones(2, np.float16), "k": 1}
    back = through(fake, given)
    assert back["t"].dtype == torch.bfloat16 and back["n"].dtype == np.float16
    only = through(fake, {"t": torch.ones(2)})
    assert isinstance(only["t"], torch.Tensor)
    bridge = start(1, exchange_format="raw")
    flare.receive()
    flare.send(flare.FLModel(params=given))
    file = fake.ModelFile.from_bytes(bridge.sent[0]["model"])
    assert _tree.torch_names(file) == ["t"]


@pytest.mark.torch
def test_every_torch_dtype_arrives_as_it_is(fake: Any) -> None:
    import torch

    for name in _tree._NAME_TO_TORCH.values():
        dtype = getattr(torch, name)
        given = torch.tensor([0, 1, 1, 0]).to(dtype)
        sent = _tree.pack({"x": given})
        data = fake.write_model(None, sent.tensors)
        arrived = _tree.unpack(fake.ModelFile.from_bytes(data), "torch")["x"]
        assert arrived.dtype == dtype and arrived.shape == given.shape
        assert torch.equal(arrived.view(torch.uint8), given.view(torch.uint8)), name


@pytest.mark.torch
def test_what_cannot_be_encoded_fails_at_the_sender_and_names_its_path() -> None:
    import torch

    for bad, words in (
        (torch.ones(2, dtype=torch.complex64), "view_as_real"),
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.empty(2, device="meta"), "materialize"),
    ):
        with pytest.raises(TreeError) as caught:
            _tree.pack({"layers": [{"w": bad}]})
        assert caught.value.path == "params['layers'][0]['w']"
        assert words in caught.value.hint


@pytest.mark.torch
def test_tied_weights_travel_once_and_stay_one_storage(fake: Any) -> None:
    import torch

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(50, 8)
            self.head = torch.nn.Linear(8, 50, bias=False)
            self.head.weight = self.emb.weight

    model = Tied()
    packed = _tree.pack(dict(model.state_dict()))
    assert packed.nbytes == 50 * 8 * 4 and packed.aliases == {"head.weight": "emb.weight"}
    back = through(fake, dict(model.state_dict()), "torch", None)
    assert back["head.weight"].data_ptr() == back["emb.weight"].data_ptr()
    back["emb.weight"][0] = 7
    assert back["head.weight"][0].tolist() == [7.0] * 8
    other = Tied()
    other.load_state_dict(back)
    assert other.head.weight is other.emb.weight and other.emb.weight[0, 0].item() == 7


def test_bf16_and_fp8_in_numpy_need_ml_dtypes_and_say_so(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = np.array([0x3F80, 0xBF80], np.uint16)
    data = fake.write_model(None, [("x", "BF16", (2,), bits.view(np.uint8))])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TreeError) as caught:
        _tree.unpack(fake.ModelFile.from_bytes(data))
    assert "`x` is BF16" in str(caught.value) and "ml_dtypes" in caught.value.hint


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_keras_weights_and_variables(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras
    import torch

    def net(dtype: str) -> Any:
        return keras.Sequential(
            [
                keras.layers.Input((4,)),
                keras.layers.Dense(3, activation="relu", name="hidden", dtype=dtype),
                keras.layers.Dense(2, name="out", dtype=dtype),
            ]
        )

    for dtype in ("float32", "bfloat16"):
        one, two = net(dtype), net(dtype)
        back = through(fake, _tree.plain(one))
        assert list(back) == ["hidden", "out"]
        assert str(back["hidden"][0].dtype) == dtype
        for name, weights in back.items():
            two.get_layer(name).set_weights(weights)
        for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        # A variable itself is a leaf, too: of this backend, a torch tensor.
        variable = one.get_layer("out").kernel
        sent = through(fake, {"kernel": variable}, "torch")["kernel"]
        assert torch.equal(sent, variable.value.detach())


# The peak of a process that writes tensors which have to be copied first.
PEAK = """
import os, sys
import numpy as np
{imports}
from firesteel import _native, _tree

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

piece = 16 << 20
params = {{}}
for at in range(12):
    {make}
packed = _tree.pack(params)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
_native.write_model(sys.argv[1], packed.tensors, tree=packed.tree)
print(status("VmHWM") - before, os.path.getsize(sys.argv[1]))
"""

MAKERS = {
    "numpy": ("", "params[str(at)] = np.ones((2048, 2048), np.float32).T"),
    "torch": ("import torch", "params[str(at)] = torch.ones(2048, 2048).t()"),
}


@pytest.mark.e2e
@pytest.mark.parametrize(
    "kind", ["numpy", pytest.param("torch", marks=pytest.mark.torch)]
)
def test_tensors_that_have_to_be_copied_are_copied_one_at_a_time(
    kind: str, tmp_path: Path
) -> None:
    imports, make = MAKERS[kind]
    code = textwrap.dedent(PEAK).format(imports=imports, make=make)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert size > 12 * (16 << 20)
    # One copy at a time, and that of the next while the last is let go; the rest is
    # what torch first touches on the way.
    assert grown < 3 * (16 << 20), f"{grown / 2**20:.0f} MiB"


NATIVE = """
import torch
import firesteel.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    params = model.params
    assert params["bf16"].dtype == torch.bfloat16, params["bf16"].dtype
    assert params["fp8"].dtype == torch.float8_e4m3fn
    assert params["fp16"].dtype == torch.float16
    assert params["head"] is params["emb"]
    with torch.no_grad():
        params["bf16"] += 1
        params["emb"] += 2
    flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
"""


@pytest.mark.e2e
@pytest.mark.torch
@pytest.mark.parametrize("expected", ["numpy", "pytorch", "raw"])
def test_native_tensors_and_ties_go_round_and_round(
    expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(NATIVE)
    shared = torch.zeros(30_000)
    recipe = FedAvgRecipe(
        name="native", train_script="client.py", min_clients=2, num_rounds=2,
        framework="pytorch", server_expected_format=expected,
        model={
            "bf16": torch.zeros(3, dtype=torch.bfloat16),
            "fp8": torch.ones(2, dtype=torch.float8_e4m3fn),
            "fp16": torch.ones(2, dtype=torch.float16),
            "emb": shared, "head": shared,
        },
    )  # fmt: skip
    run = recipe.execute(SimEnv(num_clients=2, extra={"console": "off"}))
    last = run.model("last")
    assert last["bf16"].dtype == torch.bfloat16 and last["bf16"].tolist() == [2, 2, 2]
    assert last["fp8"].dtype == torch.float8_e4m3fn
    assert last["emb"].data_ptr() == last["head"].data_ptr() and last["emb"][0].item() == 4


AS_NUMPY = """
import numpy as np
import firesteel.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    assert all(isinstance(v, np.ndarray) for v in model.params.values())
    flare.send(flare.FLModel(params={k: v + 1 for k, v in model.params.items()}))
"""


@pytest.mark.e2e
@pytest.mark.torch
def test_the_exchange_format_is_what_the_script_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(AS_NUMPY)
    recipe = FedAvgRecipe(
        name="exchanged", train_script="client.py", min_clients=2, num_rounds=1,
        framework="pytorch", params_exchange_format="numpy", model={"w": torch.zeros(3)},
    )  # fmt: skip
    run = recipe.execute(SimEnv(num_clients=2, extra={"console": "off"}))
    assert run.model("last")["w"].tolist() == [1, 1, 1]


PARTIAL = """
import numpy as np
import firesteel.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    params = model.params
    if model.current_round == 0:
        adapter = {"adapter": params["adapter"] + 1}
        flare.send(flare.FLModel(params=adapter, partial=True))
    else:
        params["adapter"] += 1
        flare.send(flare.FLModel(params=params, partial="auto"))
"""


@pytest.mark.e2e
def test_an_adapter_alone_is_trained_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text(PARTIAL)
    base = np.arange(50_000, dtype=np.float32)
    recipe = FedAvgRecipe(
        name="adapter", train_script="client.py", min_clients=2, num_rounds=2,
        model={"base": base, "adapter": np.zeros(4, np.float32)},
    )  # fmt: skip
    run = recipe.execute(SimEnv(num_clients=2, extra={"console": "off"}))
    last = run.model("last")
    assert last["adapter"].tolist() == [2, 2, 2, 2]
    np.testing.assert_array_equal(last["base"], base)
