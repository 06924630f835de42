"""Filters: how recipes describe them, and how a trainer runs the user's own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel.client as flare
from firesteel import _tree
from firesteel.errors import ClientError, SpecError
from firesteel.filters import Compress, ExcludeVars, Filter, KeepVars, OnlyKind, Quantize, TopK
from firesteel.recipe import FedAvgRecipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firesteel.filters import FilterContext

MODULE = '''
from firesteel.filters import Filter

class Scale(Filter):
    def __init__(self, factor, names=()):
        self.factor = factor
        self.names = names

    def process(self, model, context):
        for name, array in model.params.items():
            if not self.names or name in self.names:
                model.params[name] = array * self.factor
        model.meta["passed"] = [context.direction, context.site, context.round]
        return model

class Nothing(Filter):
    def process(self, model, context):
        pass
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of filters beside the training script, as the job's script has it."""
    (tmp_path / "client.py").write_text("import firesteel.client as flare\n")
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine  # type: ignore[import-not-found]

    yield mine
    sys.modules.pop("mine", None)


def spec(filters: Any, **parameters: Any) -> dict[str, Any]:
    given = {"model": {"w": np.zeros(2)}, **parameters}
    recipe = FedAvgRecipe(train_script="client.py", min_clients=2, filters=filters, **given)
    built: dict[str, Any] = recipe._job.spec["filters"]
    return built


def kinds(placed: list[dict[str, Any]]) -> list[str]:
    return [one["filter"]["kind"] for one in placed]


def test_a_list_goes_where_each_filter_works(mine: Any) -> None:
    built = spec(
        [ExcludeVars("bn"), Quantize("nf4", include="w", stochastic=True), mine.Scale(2.0),
         OnlyKind("full"), Compress(5)],
    )  # fmt: skip
    assert kinds(built["task_data"]) == ["quantize", "compress"]
    # The trainer's own come first on the way out.
    assert kinds(built["result"]) == [
        "python", "exclude_vars", "quantize", "only_kind", "compress",
    ]  # fmt: skip
    python, exclude, quantize, only, compress = (one["filter"] for one in built["result"])
    assert python["module"] == "mine" and python["class"] == "Scale"
    assert python["file"].endswith("/mine.py") and python["args"] == {"factor": 2.0}
    assert exclude == {"kind": "exclude_vars", "patterns": ["bn"]}
    assert quantize == {
        "kind": "quantize", "scheme": "nf4", "include": ["w"], "exclude": [],
        "error_feedback": False, "stochastic": True,
    }  # fmt: skip
    assert only == {"kind": "only_kind", "transfer": "FULL"}
    assert compress == {"kind": "compress", "level": 5, "include": [], "exclude": []}
    assert all(one["sites"] is None for one in built["result"])


def test_directions_and_sites_are_said_apart(mine: Any) -> None:
    built = spec(
        {
            "task_data": Quantize("float16"),
            "result": [TopK(0.1).at("site-1"), Quantize("NORMFLOAT4").at("site-2", "site-3")],
        },
        params_transfer_type="DIFF",
    )
    assert built["task_data"][0]["filter"]["scheme"] == "fp16"
    top, nf4 = built["result"]
    assert top["sites"] == ["site-1"] and top["filter"]["error_feedback"] is True
    assert nf4["sites"] == ["site-2", "site-3"] and nf4["filter"]["scheme"] == "nf4"
    # `at` makes another filter and leaves the first as it was.
    everywhere = Quantize("bf16")
    assert everywhere.at("site-1")._sites == ("site-1",) and everywhere._sites is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Quantize("nf5"), "`Quantize.scheme` is 'nf5', expected one of 'fp16'"),
        (lambda: Quantize(4), "`Quantize.scheme` is 4"),
        (lambda: Quantize("nf4", include="("), "`Quantize.include` is '(', expected a regular"),
        (lambda: Quantize("nf4", error_feedback=1), "`Quantize.error_feedback` is 1"),
        (lambda: TopK(0), "`TopK.share` is 0"),
        (lambda: TopK(True), "`TopK.share` is True"),
        (lambda: Compress(20), "`Compress.level` is 20"),
        (lambda: ExcludeVars(), "ExcludeVars names no tensors"),
        (lambda: KeepVars("["), "`KeepVars` is '['"),
        (lambda: OnlyKind("METRICS"), "`OnlyKind.kind` is 'METRICS'"),
        (lambda: Quantize("nf4").at(), "`at` names no site"),
        (lambda: Quantize("nf4").at("../x"), "`filters.at` is '../x'"),
        (lambda: spec("nf4"), "`filters` is 'nf4', expected a list of filters"),
        (lambda: spec([Quantize]), "expected a filter"),
        (lambda: spec({"results": []}), "`filters` has the key 'results'"),
        (lambda: spec([TopK(0.1)]), "keeps the largest values of a difference"),
        (lambda: spec({"task_data": [ExcludeVars("x")]}), "works on results alone"),
    ],
)
def test_a_bad_filter_is_refused_by_name(
    make: Callable[[], Any], words: str, mine: Any
) -> None:
    del mine
    with pytest.raises(SpecError) as refused:
        make()
    assert words in str(refused.value)


def test_a_filter_that_no_trainer_could_make_is_refused(mine: Any) -> None:
    class Local(Filter):
        def process(self, model: flare.FLModel, context: FilterContext) -> flare.FLModel:
            return model

    with pytest.raises(SpecError, match="in a function"):
        spec([Local()])
    with pytest.raises(SpecError, match="cannot travel"):
        spec([mine.Scale(np.ones(3))])
    with pytest.raises(SpecError, match="wrong side"):
        spec({"result": [Quantize("fp16"), mine.Scale(1.0)]})
    with pytest.raises(SpecError, match="wrong side"):
        spec({"task_data": [mine.Scale(1.0), Quantize("fp16")]})
    with pytest.raises(TypeError):
        mine.Scale()


def test_a_filter_without_process_is_refused_where_it_is_made() -> None:
    class Empty(Filter):
        pass

    with pytest.raises(SpecError, match="Empty has no method `process`"):
        Empty()  # type: ignore[abstract]


def test_filters_are_shown_as_they_are_written(mine: Any) -> None:
    for text in (
        "Quantize('int8', exclude=['embed'], error_feedback=True)",
        "TopK(0.01)",
        "Compress(3)",
        "ExcludeVars('a', 'b').at('site-1')",
        "KeepVars('lora_')",
        "OnlyKind('DIFF')",
    ):
        made = eval(text)
        assert repr(made).replace(", error_feedback=True)", ")") == text.replace(
            ", error_feedback=True)", ")"
        )
    assert repr(mine.Scale(factor=2, names=["w"])) == "Scale(factor=2, names=['w'])"


# -- in the trainer -----------------------------------------------------------


def described(mine: Any, *filters: Any) -> list[dict[str, Any]]:
    del mine
    return [one.to_json()["filter"] for one in filters]


def sent(fake: Any, entry: dict[str, Any]) -> Any:
    return _tree.unpack(fake.ModelFile.from_bytes(entry["model"]))


def test_a_trainer_runs_them_in_order(fake: Any, start: Any, mine: Any) -> None:
    bridge = start(
        1,
        params={"w": np.full(3, 2.0, np.float32), "b": np.ones(2)},
        filters={
            "task_data": described(mine, mine.Scale(10.0, ["w"])),
            "result": described(mine, mine.Scale(0.5), mine.Scale(3.0, names=["b"])),
        },
    )
    model = flare.receive()
    assert model is not None and model.params["w"].tolist() == [20, 20, 20]
    assert model.meta["passed"] == ["task_data", "site-1", 0]
    answer = flare.FLModel(params=dict(model.params))
    flare.send(answer)
    back = sent(fake, bridge.sent[0])
    assert back["w"].tolist() == [10, 10, 10] and back["b"].tolist() == [1.5, 1.5]
    assert bridge.sent[0]["meta"]["passed"] == ["result", "site-1", 0]
    assert answer.params is None


def test_a_filter_sees_the_difference_when_that_is_sent(
    fake: Any, start: Any, mine: Any
) -> None:
    bridge = start(
        1,
        params={"w": np.full(3, 2.0, np.float32), "n": np.array([5], np.int64)},
        params_transfer_type="DIFF",
        filters={"result": described(mine, mine.Scale(2))},
    )
    model = flare.receive()
    assert model is not None
    flare.send(flare.FLModel(params={"w": model.params["w"] + 1, "n": model.params["n"] + 3}))
    assert bridge.sent[0]["params_type"] == "DIFF"
    back = sent(fake, bridge.sent[0])
    assert back["w"].tolist() == [2, 2, 2] and back["n"].tolist() == [6]


def test_a_filter_that_gives_nothing_back_is_told(start: Any, mine: Any) -> None:
    start(1, filters={"result": described(mine, mine.Nothing())})
    model = flare.receive()
    assert model is not None
    with pytest.raises(ClientError, match="Nothing gave back a NoneType") as refused:
        flare.send(flare.FLModel(params=model.params))
    assert "return model" in str(refused.value.hint)


def test_a_filter_that_is_not_there_is_told(start: Any, mine: Any, tmp_path: Path) -> None:
    gone = described(mine, mine.Scale(1.0))
    gone[0]["class"] = "Gone"
    start(1, filters={"task_data": gone})
    with pytest.raises(ClientError, match="the filter Gone of"):
        flare.receive()


def test_a_module_is_the_one_that_the_script_imports(
    fake: Any, start: Any, mine: Any
) -> None:
    from firesteel.client import _filters

    (made,) = _filters.load(described(mine, mine.Scale(1.0)))
    assert type(made) is mine.Scale
    sys.modules.pop("mine")
    (made,) = _filters.load(described(mine, mine.Scale(1.0)))
    assert type(made) is sys.modules["mine"].Scale and type(made) is not mine.Scale
