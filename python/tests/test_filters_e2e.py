"""Filters in whole federations: what arrives where, and in which dtype."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firesteel.errors import JobFailed
from firesteel.filters import (
    Compress,
    ExcludeVars,
    KeepVars,
    OnlyKind,
    Quantize,
    TopK,
)
from firesteel.recipe import FedAvgRecipe, SimEnv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e

# Larger than what travels inside a message.
SIZE = 40_000

# Sends what it was given, plus what its arguments say, and says what it was given.
SCRIPT = """
import sys
import numpy as np
import firesteel.client as flare
flare.init()
rng = np.random.default_rng(1)
while flare.is_running():
    model = flare.receive()
    w = model.params["w"]
    assert w.dtype == np.float32, w.dtype
    assert model.params["n"].tolist() == [7]
    step = {step}
    metrics = {{"received": float(np.abs(w).max()), "sum": float(w.astype(np.float64).sum())}}
    params = {{"w": w + step, "n": model.params["n"], "bias": model.params["bias"] + 1}}
    flare.send(flare.FLModel(params=params, metrics=metrics))
"""


@pytest.fixture
def federate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRESTEEL_TEST_MARK", str(tmp_path))

    def go(filters: Any, step: str = "np.float32(0)", start: float = 0.0, **more: Any) -> Any:
        (tmp_path / "client.py").write_text(SCRIPT.format(step=step))
        model = {
            "w": np.full(SIZE, start, np.float32),
            "n": np.array([7], np.int64),
            "bias": np.zeros(3, np.float32),
        }
        recipe = FedAvgRecipe(
            name="filters", model=model, train_script="client.py", min_clients=2,
            filters=filters, **{"num_rounds": 1, **more},
        )  # fmt: skip
        return recipe.execute(SimEnv(num_clients=2, seed=3, extra={"console": "off"}))

    return go


def test_what_goes_out_is_rounded_and_comes_back_in_its_dtype(federate: Any) -> None:
    # 1.0001 is none of the numbers that 16 bits hold; 100000 is too large for them.
    run = federate({"result": [Quantize("fp16")]}, step="np.float32(1.0001)")
    model = run.model()
    assert model["w"].dtype == np.float32 and set(model["w"]) == {np.float32(np.float16(1.0001))}
    assert model["n"].tolist() == [7] and model["n"].dtype == np.int64
    run = federate({"result": [Quantize("fp16")]}, step="np.float32(100000)")
    assert set(run.model()["w"]) == {np.float32(65504)}


def test_what_comes_in_is_rounded_and_the_server_keeps_its_own(federate: Any) -> None:
    run = federate({"task_data": [Quantize("bf16")]}, start=1.003)
    received = run.metrics()[0]["metrics"]["received"]
    assert received == pytest.approx(1.0) and run.model("initial")["w"][0] == np.float32(1.003)


def test_both_ways_and_by_site(federate: Any) -> None:
    filters = [Quantize("int8"), Compress()]
    run = federate(filters, step="rng.standard_normal(len(w)).astype(np.float32)", num_rounds=2)
    exact = federate(None, step="rng.standard_normal(len(w)).astype(np.float32)", num_rounds=2)
    difference = np.abs(run.model()["w"] - exact.model()["w"])
    assert 0 < difference.max() < 0.2
    # At one of two sites: half of what is lost.
    step = "np.float32(1.0001)"
    run = federate({"result": [Quantize("fp16").at("site-2")]}, step=step)
    half = (np.float64(np.float32(1.0001)) + np.float64(np.float16(1.0001))) / 2
    assert run.model()["w"][0] == np.float32(half)


def test_tensors_that_stay_at_the_site(federate: Any) -> None:
    run = federate([ExcludeVars("^bias")], step="np.float32(2)")
    assert set(run.model()["w"]) == {2.0} and run.model()["bias"].tolist() == [0, 0, 0]
    run = federate([KeepVars("^bias")], step="np.float32(2)")
    assert set(run.model()["w"]) == {0.0} and run.model()["bias"].tolist() == [1, 1, 1]


def test_errors_that_are_fed_back_do_not_add_up(federate: Any) -> None:
    # Beside a value of 1 the least that nf4 sends is 0.04: a step of 0.01 is lost in
    # every round, or sent in every fourth.
    step = "np.where(np.arange(len(w)) % 64 == 0, 1.0, 0.01).astype(np.float32)"
    many = {"step": step, "num_rounds": 12, "params_transfer_type": "DIFF"}
    plain = federate({"result": [Quantize("nf4")]}, **many).model()["w"]
    fed_back = federate({"result": [Quantize("nf4", error_feedback=True)]}, **many).model()["w"]
    assert plain[0] == fed_back[0] == 12.0
    assert plain[1] == 0.0 and abs(fed_back[1] - 12 * 0.01) < 0.045


def test_the_largest_values_of_a_difference(federate: Any) -> None:
    step = "np.arange(len(w), dtype=np.float32)"
    run = federate([TopK(0.01, include="^w")], step=step, params_transfer_type="DIFF")
    w = run.model()["w"]
    assert np.count_nonzero(w) == SIZE // 100 and w[-1] == SIZE - 1 and w[-SIZE // 100 - 1] == 0


def test_a_run_with_chance_can_be_repeated(federate: Any) -> None:
    chain = [Quantize("nf4", stochastic=True), Compress(1)]
    step = "rng.standard_normal(len(w)).astype(np.float32)"
    first, again = (federate(chain, step=step, num_rounds=2).model()["w"] for _ in range(2))
    assert first.tobytes() == again.tobytes()
    nearest = federate([Quantize("nf4")], step=step, num_rounds=2).model()["w"]
    assert first.tobytes() != nearest.tobytes()


def test_what_cannot_be_encoded_fails_at_its_site_by_name(federate: Any) -> None:
    with pytest.raises(JobFailed) as failed:
        federate([Quantize("nf4")], step="np.where(np.arange(len(w)) == 5, np.inf, 0)")
    text = f"{failed.value} {failed.value.hint}"
    assert "tensor `w`: 1 of 40000 values are NaN or Inf, which nf4 cannot carry" in text
    assert "exclude" in text


def test_a_kind_that_may_not_leave(federate: Any) -> None:
    with pytest.raises(JobFailed, match="lets no params of kind FULL out"):
        federate([OnlyKind("DIFF")])


def test_a_filter_of_ones_own_comes_before_those_that_encode(
    federate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doubling.py").write_text(
        "from firesteel.filters import Filter\n"
        "class Times(Filter):\n"
        "    def __init__(self, factor):\n"
        "        self.factor = factor\n"
        "    def process(self, model, context):\n"
        "        model.params['w'] = (model.params['w'] * self.factor).astype('float32')\n"
        "        return model\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "doubling", raising=False)
    from doubling import Times  # type: ignore[import-not-found]

    # 2 x 40000 is clamped behind the doubling, not before.
    run = federate({"result": [Times(2.0), Quantize("fp16")]}, step="np.float32(40000)")
    assert set(run.model()["w"]) == {np.float32(65504)}
    # On the way in it comes last: what the script sees is doubled.
    run = federate({"task_data": [Quantize("fp16"), Times(3.0)]}, start=2.0)
    assert run.metrics()[0]["metrics"]["received"] == 6.0
