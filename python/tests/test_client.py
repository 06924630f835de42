"""The client API against the stand-in: order of calls, what is sent, what is refused."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel.client as flare
from firesteel import _tree
from firesteel.client import _memory as memory
from firesteel.errors import ClientError, TreeError

if TYPE_CHECKING:
    from pathlib import Path


def sent_params(native: Any, entry: dict[str, Any], outbox: str = "") -> Any:
    if entry["model"] is not None:
        return _tree.unpack(native.ModelFile.from_bytes(entry["model"]))
    return _tree.unpack(native.ModelFile.open(os.path.join(outbox, entry["file"])))


def test_the_loop_of_a_training_script(fake: Any, start: Any) -> None:
    bridge = start(2)
    assert bridge.endpoint == ("/nowhere.sock", "secret", 0)
    rounds = []
    while flare.is_running():
        model = flare.receive()
        assert model is not None
        assert flare.receive() is model
        assert flare.is_train() and not flare.is_evaluate() and not flare.is_submit_model()
        assert flare.get_task_name() == "train"
        assert model.params_type is flare.ParamsType.FULL
        assert model.meta["SITE_NAME"] == "site-1"
        rounds.append((model.start_round, model.current_round, model.total_rounds))
        answer = flare.FLModel(
            params={"w": model.params["w"] + 1},
            metrics={"accuracy": np.float32(0.5), "n": 3},
            meta={"NUM_STEPS_CURRENT_ROUND": np.int64(7), "list": np.arange(2)},
        )
        flare.send(answer)
        assert answer.params is None and model.params is None
    assert rounds == [(0, 0, 3), (0, 1, 3)]
    assert flare.receive() is None
    entry = bridge.sent[0]
    assert entry["params_type"] == "FULL"
    assert entry["metrics"] == {"accuracy": 0.5, "n": 3.0}
    assert entry["meta"] == {"NUM_STEPS_CURRENT_ROUND": 7, "list": [0, 1]}
    assert sent_params(fake, entry)["w"].tolist() == [1, 1, 1]
    assert len(bridge.sent) == 2


def test_a_small_result_travels_inline_and_a_large_one_as_a_file(
    fake: Any, start: Any, tmp_path: Path
) -> None:
    small, large = np.zeros(100), np.arange(20_000.0)
    bridge = start(2, params={"w": small})
    for params in ({"w": small}, {"w": large}):
        flare.receive()
        flare.send(flare.FLModel(params=params))
    first, second = bridge.sent
    assert first["file"] is None and len(first["model"]) < 64 * 1024
    assert second["model"] is None
    assert np.array_equal(sent_params(fake, second, str(tmp_path))["w"], large)


def test_clear_cache_off_keeps_the_params(start: Any) -> None:
    start(2)
    model = flare.receive()
    assert model is not None
    answer = flare.FLModel(params=model.params)
    flare.send(answer, clear_cache=False)
    assert answer.params is not None and model.params is not None
    second = flare.receive()
    assert second is not model and second is not None and second.current_round == 1


def test_diff_is_computed_in_the_tensors_dtype_and_survives_changes_in_place(
    fake: Any, start: Any
) -> None:
    params = {"w": np.full(4, 2, np.float16), "n": np.array(5, np.int64), "tag": "x"}
    bridge = start(1, params=params, params_transfer_type="DIFF")
    model = flare.receive()
    assert model is not None
    model.params["w"] += 1
    flare.send(flare.FLModel(params={"w": model.params["w"], "n": np.array(9), "tag": "y"}))
    entry = bridge.sent[0]
    assert entry["params_type"] == "DIFF"
    back = sent_params(fake, entry)
    assert back["w"].dtype == np.float16 and back["w"].tolist() == [1, 1, 1, 1]
    assert back["n"] == 4 and back["tag"] == "y"


def test_a_diff_that_a_script_made_itself_goes_as_it_is(fake: Any, start: Any) -> None:
    bridge = start(1, params_transfer_type="DIFF")
    flare.receive()
    flare.send(flare.FLModel("DIFF", {"w": np.ones(3, np.float32)}))
    assert bridge.sent[0]["params_type"] == "DIFF"
    assert sent_params(fake, bridge.sent[0])["w"].tolist() == [1, 1, 1]


def test_ties_that_only_the_script_made_are_differences_of_their_own(
    fake: Any, start: Any
) -> None:
    bridge = start(
        1, params={"a": np.zeros(2), "b": np.ones(2)}, params_transfer_type="DIFF"
    )
    flare.receive()
    both = np.full(2, 3.0)
    flare.send(flare.FLModel(params={"a": both, "b": both}))
    back = sent_params(fake, bridge.sent[0])
    assert back["a"].tolist() == [3, 3] and back["b"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"v": np.zeros(3, np.float32)}, "`v` is not in the model"),
        ({"w": np.zeros(2, np.float32)}, r"`w` has shape \(2,\), the received model has \(3,\)"),
        ({"w": np.zeros(3)}, "`w` is F64, the received model has F32"),
    ],
)
def test_a_difference_to_something_else_is_refused(
    start: Any, params: Any, sentence: str
) -> None:
    start(1, params_transfer_type="DIFF")
    flare.receive()
    with pytest.raises(ClientError, match=sentence):
        flare.send(flare.FLModel(params=params))


def answer() -> flare.FLModel:
    return flare.FLModel(params={"w": np.zeros(3, np.float32)})


def before_receive() -> None:
    flare.is_running()
    flare.send(answer())


def twice() -> None:
    flare.receive()
    flare.send(answer())
    flare.send(answer())


def after_receive(model: Any) -> Callable[[], None]:
    def act() -> None:
        flare.receive()
        flare.send(model() if callable(model) else model)

    return act


def bad_type() -> flare.FLModel:
    model = answer()
    model.params_type = "HALF"  # type: ignore[assignment]
    return model


MISUSE = [
    (before_receive, "called before flare.receive()", "once per turn"),
    (twice, "called twice for one task", "one answer"),
    (after_receive(flare.FLModel), "neither params nor metrics", "FLModel(params="),
    (after_receive({"w": 1}), "was given a dict, expected an FLModel", "flare.FLModel("),
    (after_receive(bad_type), "`params_type` is 'HALF'", "leave it out"),
    (lambda: flare.FLModel("HALF", {}), "`params_type` is 'HALF'", "leave it out"),
    (lambda: flare.FLModel("FULL"), "params_type=FULL but no params", "params="),
    (lambda: flare.FLModel(metrics=0.5), "`metrics` is a float", "accuracy"),  # type: ignore[arg-type]
    (
        after_receive(flare.FLModel(metrics={"accuracy": "high"})),
        "metrics['accuracy'] is a str",
        "meta",
    ),
    (
        after_receive(flare.FLModel(metrics={"a": 1.0}, meta={"x": object()})),
        "meta['x'] holds a object",
        "params",
    ),
    (
        after_receive(flare.FLModel(metrics={"a": 1.0}, meta={"NUM_STEPS_CURRENT_ROUND": 0})),
        "is 0, expected a positive number",
        "steps",
    ),
    (lambda: flare.data("train"), "no data named 'train'; it has: 'test'", "SimEnv(data="),
    (lambda: flare.init(rank=-1, config_file="x"), "`rank` is -1", "RANK"),
]


@pytest.mark.parametrize(("act", "sentence", "hint"), MISUSE)
def test_misuse_is_an_error_with_cause_and_cure(
    start: Any, act: Any, sentence: str, hint: str
) -> None:
    start(2, data={"test": "/x"})
    with pytest.raises(ClientError) as caught:
        act()
    assert sentence in caught.value.message
    assert hint in caught.value.hint
    assert isinstance(caught.value, RuntimeError)


def test_params_that_cannot_be_sent_are_named(start: Any) -> None:
    start(1)
    flare.receive()
    with pytest.raises(TreeError, match=r"params\['a'\]\[0\]: a builtin_function"):
        flare.send(flare.FLModel(params={"a": [print]}))


def test_nothing_works_before_init(start: Any) -> None:
    with pytest.raises(ClientError, match="before flare.init"):
        flare.receive()


def test_a_script_run_by_hand_says_how_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flare, "_current", None)
    for name in ("FIRESTEEL_BRIDGE", "FIRESTEEL_TOKEN", "FIRESTEEL_ATTACH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClientError) as caught:
        flare.init()
    assert "started by hand" in caught.value.message
    assert "SimEnv" in caught.value.hint


def test_init_twice_warns_and_goes_on(start: Any) -> None:
    start(1)
    first = flare._current
    with pytest.warns(RuntimeWarning, match="called twice"):
        assert flare.init() is first


def test_other_ranks_say_what_they_need(start: Any) -> None:
    start(2, rank=1)
    for ask in (flare.is_train, flare.is_evaluate, flare.is_submit_model, flare.get_task_name):
        with pytest.raises(ClientError, match="on rank 1; only rank 0"):
            ask()
    flare.log("loss", 1.0, flare.AnalyticsDataType.SCALAR)
    with pytest.warns(RuntimeWarning, match="only rank 0 answers"):
        flare.send(answer())
    with pytest.raises(ClientError, match="torch.distributed; that is not initialized") as caught:
        flare.is_running()
    assert "init_process_group" in caught.value.hint


@pytest.mark.torch
def test_other_ranks_follow_rank_0(
    fake: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    from firesteel.client import _ranks

    shared = dist.HashStore()
    monkeypatch.setattr(_ranks, "store", lambda: shared)
    large = {"w": np.zeros(20_000)}
    models = [large, {"w": np.ones(1)}]
    tasks = [fake.Task(fake.model_file(p), round=n) for n, p in enumerate(models)]
    bridge = start(tasks)
    zero = flare._current
    one = flare.APIContext(1)
    one.connect()
    for number in range(2):
        assert flare.is_running(ctx=zero)
        flare.receive(ctx=zero)
        flare.send(flare.FLModel(metrics={"a": 1.0}), ctx=zero)
        assert flare.is_running(ctx=one)
        model = flare.receive(ctx=one)
        assert model is not None and model.current_round == number
        assert model.params["w"].shape == ((20_000,), (1,))[number]
    assert flare.get_site_name(ctx=one) == "site-1"
    assert flare.receive(timeout=0.01, ctx=one) is model
    assert not flare.is_running(ctx=zero) and not flare.is_running(ctx=one)
    assert len(bridge.sent) == 2
    assert list(tmp_path.glob("ranks-*")) == []


def test_evaluate_and_submit_model_tasks(fake: Any, start: Any) -> None:
    file = fake.model_file({"w": np.ones(2)})
    bridge = start([fake.Task(file, "validate"), fake.Task(None, "submit_model")])
    assert flare.is_evaluate()
    flare.receive()
    flare.send(flare.FLModel(metrics={"accuracy": 0.25}))
    assert flare.is_submit_model()
    model = flare.receive()
    assert model is not None and model.params is None
    flare.send(flare.FLModel(params={"w": np.ones(2)}))
    assert bridge.sent[0]["model"] is None and bridge.sent[0]["params_type"] is None
    assert bridge.sent[1]["params_type"] == "FULL"
    assert not flare.is_running() and not flare.is_train()


def test_timeouts_give_none_and_the_task_can_still_come(start: Any) -> None:
    start(1)
    assert flare.receive(timeout=0) is None
    assert flare.receive(timeout=1) is not None


def test_decorated_functions(start: Any) -> None:
    bridge = start(1)
    with pytest.warns(DeprecationWarning):

        @flare.evaluate
        def measure(model: Any) -> float:
            return float(model.params["w"].sum())

        @flare.train(step=2.0)
        def fit(model: Any, step: float) -> flare.FLModel:
            return flare.FLModel(params={"w": model.params["w"] + step})

    measure()
    fit()
    assert bridge.sent[0]["metrics"] == {"accuracy": 0.0}


def test_facts_about_the_job(start: Any) -> None:
    start(1, data={"train": "/d.npz"}, config={"extra": 1})
    assert flare.get_job_id() == "digits-1"
    assert flare.get_site_name() == "site-1"
    assert flare.data("train") == "/d.npz"
    assert flare.system_info() == {
        "job_id": "digits-1", "job_name": "digits", "site_name": "site-1", "sites_total": 2,
    }  # fmt: skip
    config = flare.get_config()
    assert config["extra"] == 1 and "outbox" not in config


def test_state_is_saved_with_each_send_and_read_again(
    fake: Any, start: Any, tmp_path: Path
) -> None:
    bridge = start(3)
    flare.receive()
    flare.send(answer())
    assert bridge.sent[0]["state_file"] is None
    assert len(flare.state) == 0
    flare.receive()
    flare.state["m"] = {"v": np.ones(2), "n": 3}
    flare.send(answer())
    flare.receive()
    flare.state["m"]["v"] += 1
    flare.send(answer())
    assert [entry["state_file"] for entry in bridge.sent[1:]] == [
        "state-1-0-1.safetensors",
        "state-2-0-2.safetensors",
    ]
    flare.shutdown()
    start(1, state_file=str(tmp_path / "state-1-0-1.safetensors"))
    assert flare.state["m"]["v"].tolist() == [1, 1]
    assert flare.state["m"]["n"] == 3
    flare.receive()
    del flare.state["m"]
    flare.send(answer())
    path = tmp_path / fake.Bridge.last.sent[0]["state_file"]
    flare.shutdown()
    start(1, state_file=str(path))
    assert dict(flare.state) == {}


@pytest.mark.torch
def test_torch_params_state_and_differences(fake: Any, start: Any, tmp_path: Path) -> None:
    import torch

    params = {"w": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(2)}
    bridge = start(
        1, params=params, params_transfer_type="DIFF", exchange_format="pytorch"
    )
    model = flare.receive()
    assert model is not None
    assert model.params["w"].dtype == torch.bfloat16
    with torch.no_grad():
        model.params["w"] *= 3
    flare.state["m"] = {"torch": torch.ones(2), "numpy": np.ones(2)}
    flare.send(flare.FLModel(params=model.params))
    data = fake.ModelFile.from_bytes(bridge.sent[0]["model"])
    back = _tree.unpack(data, "torch")
    assert back["w"].dtype == torch.bfloat16 and back["w"].tolist() == [2, 2, 2]
    assert back["n"].item() == 0
    flare.shutdown()
    start(1, state_file=str(tmp_path / "state-0-0-0.safetensors"))
    assert isinstance(flare.state["m"]["torch"], torch.Tensor)
    assert isinstance(flare.state["m"]["numpy"], np.ndarray)


def test_the_seed_is_set_anew_for_each_round(start: Any) -> None:
    def draws() -> list[Any]:
        seen = []
        start(2, seed=7)
        while flare.is_running():
            flare.receive()
            seen.append((random.random(), float(np.random.rand())))
            flare.send(answer())
        flare.shutdown()
        return seen

    first = draws()
    assert first == draws()
    assert first[0] != first[1]


def test_tracking_writers_send_events(start: Any) -> None:
    bridge = start(1)
    flare.receive()
    writer = flare.tracking.SummaryWriter()
    writer.add_scalar("loss", np.float32(0.5), global_step=4)
    writer.add_scalars("acc", {"a": 1, "b": 2})
    writer.flush()
    flare.tracking.MLflowWriter().log_metrics({"x": 1.0}, step=2)
    flare.tracking.WandBWriter().log({"y": 1.0})
    kinds = [(m["key"], m["type"], m["step"], m["value"]) for m in bridge.metrics]
    assert kinds == [
        ("loss", "SCALAR", 4, 0.5),
        ("acc", "SCALARS", 0, {"a": 1, "b": 2}),
        ("metrics", "METRICS", 2, {"x": 1.0}),
        ("metrics", "METRICS", 0, {"y": 1.0}),
    ]


def test_log_records_go_to_the_site_under_the_scripts_name(start: Any) -> None:
    bridge = start(1)
    logging.info("hello %s", "there")
    logging.getLogger("__main__").warning("careful")
    logging.getLogger("data.loader").error("broken")
    logging.getLogger("custom.mine").info("mine")
    assert bridge.logs == [
        (20, "custom.client", "hello there"),
        (30, "custom.client", "careful"),
        (40, "custom.client.data.loader", "broken"),
        (20, "custom.mine", "mine"),
    ]


def test_a_forked_process_does_not_speak_on_the_connection(start: Any) -> None:
    start(1)
    flare.receive()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            flare.send(answer())
        except ClientError as error:
            os.write(writer, error.message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"process that the training script forked" in os.read(reader, 1000)


def test_a_crash_is_reported_with_phase_and_traceback(start: Any) -> None:
    bridge = start(1)

    def crash(error: Exception) -> None:
        try:
            raise error
        except Exception as caught:
            assert flare._report_crash(type(caught), caught, caught.__traceback__)

    crash(ImportError("no such thing"))
    flare.receive()
    crash(ValueError("bad value"))
    with pytest.raises(TreeError) as refused:
        flare.send(flare.FLModel(params={"x": object()}))
    crash(refused.value)
    codes = [(code, phase) for code, phase, _, _ in bridge.failures]
    assert codes == [("raised", "start"), ("raised", "train"), ("raised", "send")]
    assert bridge.failures[1][2] == "ValueError: bad value"
    assert 'raise error\nValueError: bad value' in bridge.failures[1][3]
    assert "hint:" in bridge.failures[2][2]


def test_attach_by_profile(fake: Any, start: Any, tmp_path: Path) -> None:
    profile = tmp_path / "site-2.json"
    profile.write_text(json.dumps({"schema_version": 1, "execution_mode": "attach",
                                   "socket": "/s", "token": "t", "site": "site-2"}))  # fmt: skip
    fake.Bridge.script = []
    flare.init(config_file=str(profile))
    assert fake.Bridge.last.endpoint == ("/s", "t", 0)
    flare.shutdown()
    profile.write_text("{}")
    with pytest.raises(ClientError, match="is not an attach profile"):
        flare.init(config_file=str(profile))
    with pytest.raises(ClientError, match="no attach profile at"):
        flare.init(config_file=str(tmp_path / "none.json"))


def test_memory_is_given_back_every_so_many_rounds(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(memory, "trim_heap", lambda: trimmed.append(1))
    bridge = start(5, gc_rounds=2)
    while flare.is_running():
        flare.receive()
        flare.send(answer())
    assert len(trimmed) == 2
    # What it cost is told.
    told = [text for level, name, text in bridge.logs if name == "firesteel.memory"]
    assert len(told) == 2 and all("memory given back in" in text for text in told)


def test_memory_is_given_back_when_that_costs_one_percent_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    trimmed: list[float] = []

    def trim() -> None:
        trimmed.append(clock[0])
        clock[0] += 0.2

    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(memory.gc, "collect", lambda: None)
    monkeypatch.setattr(memory, "trim_heap", trim)
    keeper = memory.Housekeeper(every=0, empty_cuda=False)
    for _ in range(1000):
        clock[0] += 1.0
        keeper.after_round()
    # The first after five rounds, for what it was thought to cost; then every 21st.
    assert trimmed[0] == 5.0 and 45 <= len(trimmed) <= 50
    assert keeper.cost_s <= 0.0101 * clock[0]


def test_the_heap_is_trimmed_where_the_allocator_can() -> None:
    glibc = "glibc" in platform.libc_ver()
    assert memory.trim_heap() in (("glibc", "jemalloc") if glibc else ("", "jemalloc"))


def test_nothing_of_a_round_is_held_after_send(
    start: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    start(2, gc_rounds=1)
    model = flare.receive()
    assert model is not None
    # bytearrays have no weak references; an array over one keeps a view of it.
    seen = weakref.ref(model.params["w"])
    monkeypatch.setattr(memory, "trim_heap", lambda: held.append(seen() is not None))
    flare.send(flare.FLModel(params=model.params))
    assert held == [False]


@pytest.mark.parametrize("module", ["firesteel", "firesteel.client", "firesteel.recipe"])
def test_importing_loads_little_beside_numpy(module: str) -> None:
    # What an import costs in time is a figure of `make bench`; what it loads decides it.
    code = (
        "import sys, numpy; n = set(sys.modules); "
        f"import {module}; print(*sorted(set(sys.modules) - n))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    loaded = set(out.stdout.split())
    ours = {name for name in loaded if name.split(".")[0] == "firesteel"}
    # The standard library's own, most of which NumPy has loaded already.
    assert len(loaded - ours) <= 30, sorted(loaded - ours)
    heavy = {"asyncio", "dataclasses", "inspect", "multiprocessing", "subprocess", "tempfile"}
    foreign = {"torch", "sklearn", "tensorflow", "scipy", "pandas"}
    assert not (heavy | foreign) & loaded
