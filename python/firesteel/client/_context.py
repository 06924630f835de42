"""One connection of a training script to its site."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, cast

from firesteel import _tree
from firesteel.client import _changes, _difference, _filters, _logs, _ranks, _state
from firesteel.client._model import AnalyticsDataType, FLModel, ParamsType
from firesteel.errors import ClientError, Error

if TYPE_CHECKING:
    from types import TracebackType

    from firesteel._native import Bridge, ModelFile, StreamLink, Task
    from firesteel.client._logs import Forwarder
    from firesteel.client._memory import Housekeeper
    from firesteel.client._ranks import FollowedTask, Follower, Publisher
    from firesteel.filters import Filter

# Set by whatever starts a trainer.
SOCKET = "FIRESTEEL_BRIDGE"
TOKEN = "FIRESTEEL_TOKEN"
ATTACH = "FIRESTEEL_ATTACH"

# Bytes up to which a result travels inside the message: limits::INLINE_OBJECT.
INLINE = 64 * 1024

TRAIN, EVALUATE, SUBMIT_MODEL = "train", "validate", "submit_model"
STEPS = "NUM_STEPS_CURRENT_ROUND"


class APIContext:
    """A script's side of one job; `init` makes it.

    Scripts use the functions of `firesteel.client`, which speak to the context
    that `init` made last; with several jobs in one process, pass `ctx=`.
    """

    def __init__(self, rank: int | str | None = None, config_file: str | None = None) -> None:
        self.rank = _rank(rank)
        self.config_file = config_file
        self._bridge: Bridge | None = None
        self._publisher: Publisher | None = None
        self._follower: Follower | None = None
        self._welcome: dict[str, Any] = {}
        self._process = os.getpid()
        self._attached = False
        self._task: Task | FollowedTask | None = None
        self._received: FLModel | None = None
        self._pristine: ModelFile | None = None
        # Of `firesteel.stream`: connections that wait for their next use.
        self._links: list[StreamLink] = []
        self._links_of = 0
        self._housekeeper: Housekeeper | None = None
        self._filters: dict[str, list[Filter]] = {}
        self._state: dict[str, Any] | None = None
        self._metrics: dict[str, Any] | None = None
        self._forwarder: Forwarder | None = None
        self._reported: BaseException | None = None
        self._ended = False
        self._sending = False
        self._tasks_seen = 0
        self._sent = 0
        self._rounds_done = 0

    # -- connection --------------------------------------------------------

    def connect(self) -> None:
        """Connects to the site's agent and sets the process up for its job."""
        socket, token, self._attached = endpoint(self.config_file)
        if self.rank != 0:
            self._follower = _ranks.Follower(self.rank)
            return
        from firesteel import _native

        self._bridge = _native.Bridge.connect(socket, token, self.rank)
        self._welcome = json.loads(self._bridge.welcome())
        self._publisher = _ranks.Publisher()
        self._forwarder = _logs.install(
            self._bridge,
            script=_script_stem(),
            level=self._welcome.get("log_level") or "INFO",
            captured=not self._attached,
        )
        self._reseed("start")

    @property
    def connected(self) -> bool:
        """Whether `connect` was called and `shutdown` was not."""
        return self._bridge is not None or self._follower is not None

    @property
    def bridge(self) -> Bridge:
        """The connection.

        Raises:
            ClientError: when there is none, or when this is another process.
        """
        if self._bridge is None:
            raise ClientError(
                "the connection to the site is closed",
                hint="call flare.init() before, and flare.shutdown() only at the end",
                code="misuse",
            )
        if os.getpid() != self._process:
            raise ClientError(
                "flare was called in a process that the training script forked",
                hint="call flare in the process that called flare.init(), and pass "
                "results back to it",
                code="misuse",
            )
        return self._bridge

    @property
    def welcome(self) -> dict[str, Any]:
        """What the site said about the job."""
        if not self._welcome and self._follower is not None:
            self._welcome = self._follower.welcome()
        return self._welcome

    def shutdown(self) -> None:
        """Ends the connection; `is_running` is False from here on."""
        self._ended = True
        self._drop_task()
        if self._forwarder is not None:
            import logging

            logging.getLogger().removeHandler(self._forwarder)
            self._forwarder = None
        if self._bridge is not None and os.getpid() == self._process:
            self._bridge.close()
        if self._publisher is not None:
            self._publisher.clean(0)
        if self._links_of == os.getpid():
            while self._links:
                self._links.pop().close()
        self._bridge = self._follower = self._publisher = None

    # -- tasks ---------------------------------------------------------------

    def await_task(self, timeout: float | None = None) -> Task | FollowedTask | None:
        """The current task; waits for the next one when there is none.

        Raises:
            TimeoutError: when none came in time.
        """
        if self._task is not None or self._ended:
            return self._task
        task = self._next(timeout)
        if task is None:
            self._ended = True
            return None
        self._task = task
        self._tasks_seen += 1
        self._reseed(str(task.round))
        return task

    def _next(self, timeout: float | None) -> Task | FollowedTask | None:
        if self._follower is not None:
            return self._follower.next(timeout)
        task = self.bridge.next(timeout)
        if self._publisher is not None:
            self._publisher.publish(task, self._welcome)
        return task

    def is_running(self) -> bool:
        # Other ranks never send: their turn ends when they ask again.
        if self.rank != 0 and self._received is not None:
            self._drop_task()
        return self.await_task() is not None

    def receive(self, timeout: float | None = None) -> FLModel | None:
        try:
            task = self.await_task(timeout)
        except TimeoutError:
            return None
        if task is None:
            return None
        if self._received is None:
            self._received = self._read(task)
        return self._received

    def _read(self, task: Task | FollowedTask) -> FLModel:
        params: Any = None
        if task.model is not None:
            diff = self.welcome.get("params_transfer_type") == "DIFF"
            if diff and task.name == TRAIN and self.rank == 0:
                # A second mapping, which the script's changes do not reach.
                self._pristine = task.model.reopen()
            params = _tree.rebuild(self._arrays(task.model))
        elif task.name == TRAIN:
            params = {}
        meta = json.loads(task.meta or "{}")
        meta.setdefault("JOB_ID", self.welcome.get("job_id"))
        meta.setdefault("SITE_NAME", self.welcome.get("site"))
        model = FLModel(
            params=params,
            start_round=task.start_round,
            current_round=task.round,
            total_rounds=task.total_rounds,
            meta=meta,
        )
        return self._filtered("task_data", model, task)

    def _filtered(
        self, direction: str, model: FLModel, task: Task | FollowedTask
    ) -> FLModel:
        """The model behind the user's own filters."""
        described = (self.welcome.get("filters") or {}).get(direction)
        if not described or model.params is None:
            return model
        from firesteel.filters import FilterContext

        if direction not in self._filters:
            self._filters[direction] = _filters.load(described)
        if direction == "result" and self._sends_difference(model):
            # What a filter sees is what is sent.
            packed = _difference.between(
                _tree.plain(model.params), self._arrays(cast("ModelFile", self._pristine))
            )
            model = copy.copy(model)
            model.params = _filters.unpacked(packed, self.welcome.get("exchange_format"))
            model.params_type = ParamsType.DIFF
        context = FilterContext(
            direction,
            str(self.welcome.get("site")),
            str(self.welcome.get("job_id")),
            task.round,
            task.total_rounds,
        )
        return _filters.run(self._filters[direction], model, context)

    def _sends_difference(self, model: FLModel) -> bool:
        wanted = self._welcome.get("params_transfer_type", "FULL")
        full = _checked_kind(model.params_type) is ParamsType.FULL
        return full and wanted == "DIFF" and self._pristine is not None

    def _arrays(self, file: ModelFile) -> _tree.Arrays:
        """A model's tensors in the form that the script exchanges."""
        exchange = self.welcome.get("exchange_format")
        if exchange == "pytorch":
            return _tree.Arrays(file, "torch")
        # As they were made: raw has no form of its own.
        return _tree.Arrays(file, "numpy", _tree.torch_names(file) if exchange == "raw" else None)

    def send(self, model: FLModel, clear_cache: bool = True) -> None:
        self._sending = True
        self._send(model, clear_cache)
        # Left set when it raised: the crash report then says where.
        self._sending = False

    def _send(self, model: FLModel, clear_cache: bool) -> None:
        if not isinstance(model, FLModel):
            raise ClientError(
                f"flare.send() was given a {type(model).__name__}, expected an FLModel",
                hint="flare.send(flare.FLModel(params=…, metrics=…))",
                code="misuse",
            )
        if self.rank != 0:
            import warnings

            warnings.warn(
                f"flare.send() was called on rank {self.rank} and did nothing: only rank 0 "
                "answers for the site; guard it with `if rank == 0:`",
                RuntimeWarning,
                stacklevel=4,
            )
            self._drop_task()
            return
        task, received = self._task, self._received
        if task is None or received is None:
            before = self._sent == 0
            raise ClientError(
                "flare.send() was called before flare.receive()"
                if before
                else "flare.send() was called twice for one task",
                hint="call flare.receive() once per turn of `while flare.is_running():`, "
                "then send one answer",
                code="misuse",
            )
        if model.params is None and not model.metrics:
            raise ClientError(
                "flare.send() was given a model with neither params nor metrics",
                hint="flare.FLModel(params=…) with what was trained, or metrics=… with "
                "what was measured",
                code="misuse",
            )
        bridge = self.bridge
        given, model = model, self._filtered("result", model, task)
        metrics = _numbers(model.metrics or self._metrics or {})
        meta = _meta_json(model.meta)
        stem = f"{task.round}-{task.attempt}-{self._sent}"
        data: bytes | None = None
        file: str | None = None
        kind: ParamsType | None = None
        partial = False
        if model.params is not None:
            data, file, kind = self._write(model, stem)
            partial = bool(model.partial)
        state_file = self._save_state(stem)
        bridge.send(
            cast("Task", task),
            model=data,
            file=file,
            params_type=None if kind is None else kind.value,
            metrics=metrics,
            meta=meta,
            state_file=state_file,
            partial=partial,
        )
        self._sent += 1
        self._drop_task()
        if clear_cache:
            given.params = given.optimizer_params = None
            model.params = received.params = None
        # Before the heap is trimmed, so that the model's mapping goes, too.
        was_training = task.name == TRAIN
        del task, received
        if was_training:
            self._tidy()

    def _write(self, model: FLModel, stem: str) -> tuple[bytes | None, str | None, ParamsType]:
        """The result as bytes, or as the name of a file in the outbox."""
        from firesteel import _native

        kind = _checked_kind(model.params_type)
        params = _tree.plain(model.params)
        received = self._task.model if self._task is not None else None
        if self._pristine is not None and self._sends_difference(model):
            packed = _difference.between(params, self._arrays(self._pristine))
            kind = ParamsType.DIFF
        else:
            packed = _tree.pack(params)
        if model.partial:
            packed = _changes.checked(packed, received)
        if model.partial == "auto" and kind is ParamsType.FULL:
            packed = _changes.changed(packed, received)
        raw = self._welcome.get("exchange_format") == "raw"

        def written(path: str | None) -> bytes | int:
            return _native.write_model(
                path,
                packed.tensors,
                tree=packed.tree,
                aliases=packed.aliases or None,
                metadata=packed.kinds() if raw else None,
                partial=bool(model.partial),
            )

        if packed.nbytes < INLINE:
            data = written(None)
            if isinstance(data, bytes) and len(data) <= INLINE:
                return data, None, kind
        name = f"update-{stem}.safetensors"
        written(os.path.join(self._outbox(), name))
        return None, name, kind

    def _outbox(self) -> str:
        outbox = self._welcome.get("outbox")
        if not outbox:
            raise ClientError("the site named no folder for large results", code="internal")
        return str(outbox)

    def _drop_task(self) -> None:
        self._task = None
        self._received = None
        self._pristine = None
        self._metrics = None

    def keep_metrics(self, metrics: dict[str, Any]) -> None:
        """Metrics that go with the next `send` unless it has its own."""
        self._metrics = metrics

    # -- state ---------------------------------------------------------------

    def state_items(self) -> dict[str, Any]:
        """The state, read from disk when it is first asked for."""
        if self._state is None:
            path = self.welcome.get("state_file")
            self._state = _state.load(path) if path else {}
        return self._state

    def _save_state(self, stem: str) -> str | None:
        if self._state is None:
            return None
        if not self._state and not self._welcome.get("state_file") and self._sent == 0:
            return None
        return _state.save(self._state, self._outbox(), f"state-{stem}.safetensors")

    # -- facts ---------------------------------------------------------------

    def data(self, name: str) -> str:
        known = self.welcome.get("data") or {}
        if name in known:
            return str(known[name])
        site = self._welcome.get("site")
        names = ", ".join(repr(n) for n in known) or "none"
        raise ClientError(
            f"site {site} has no data named {name!r}; it has: {names}",
            hint=f'name it in the recipe, data={{"{name}": …}}, and say where it lies: '
            f'SimEnv(data={{"{site}": {{"{name}": "path"}}}})',
            code="misuse",
        )

    def log(
        self, key: str, value: Any, data_type: AnalyticsDataType | str, **kwargs: Any
    ) -> None:
        if self.rank != 0:
            return
        kind = AnalyticsDataType(data_type)
        event: dict[str, Any] = {
            "key": str(key),
            "value": _plain(value),
            "type": kind.value,
            "step": None,
            "time": time.time(),
        }
        for name, extra in kwargs.items():
            event["step" if name == "global_step" else name] = _plain(extra)
        if event["step"] is None and self._task is not None:
            event["step"] = self._task.round
        self.bridge.metric(json.dumps(event, ensure_ascii=False))

    # -- house-keeping -------------------------------------------------------

    def _reseed(self, when: str) -> None:
        seed = self.welcome.get("seed")
        if seed is None:
            return
        # NumPy imports its generators when they are first used, too late to be seeded.
        import numpy.random  # noqa: F401

        from firesteel._warm import seed_generators

        # The ranks of one site draw different numbers, as its rank 0 and others' do.
        own = f"/{self.rank}" if self.rank else ""
        seed_generators(f"{seed}/{self.welcome.get('site')}/{when}{own}")

    def _tidy(self) -> None:
        """Gives memory back after a round; `_memory` says when."""
        if self._housekeeper is None:
            from firesteel.client._memory import Housekeeper

            self._housekeeper = Housekeeper(
                every=int(self._welcome.get("gc_rounds") or 0),
                empty_cuda=bool(self._welcome.get("cuda_empty_cache")),
            )
        self._housekeeper.after_round()

    def report_crash(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> bool:
        """Tells the agent why the script ended; False when that was not possible."""
        import traceback

        if self._bridge is None or os.getpid() != self._process:
            return False
        if error is self._reported:
            return True
        self._reported = error
        code = _code_of(error)
        if self._sending:
            phase = "send"
        else:
            phase = "train" if self._tasks_seen else "start"
        said = str(error.message if isinstance(error, Error) else error).strip()
        message = f"{kind.__name__}: {said}" if said else kind.__name__
        if isinstance(error, Error) and error.hint:
            message += f" (hint: {error.hint})"
        text = "".join(traceback.format_exception(kind, error, _users(trace)))
        try:
            self._bridge.failed(code, phase, message, text)
        except Exception:
            # The agent is gone; the traceback goes to stderr all the same.
            return False
        return True


def endpoint(config_file: str | None) -> tuple[str, str, bool]:
    """Where the agent listens, the word that opens, and whether we attach by hand."""
    profile = config_file or os.environ.get(ATTACH)
    if profile:
        try:
            with open(profile, encoding="utf-8") as file:
                content = json.load(file)
            return str(content["socket"]), str(content["token"]), True
        except FileNotFoundError:
            raise ClientError(
                f"there is no attach profile at {profile}",
                hint="a job with execution_mode=\"attach\" writes one per site into "
                "`attach/` of its run directory when it starts",
                code="misuse",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise ClientError(
                f"{profile} is not an attach profile: {problem}",
                hint="use the file that the job wrote into `attach/` of its run directory",
                code="misuse",
            ) from None
    socket, token = os.environ.get(SOCKET), os.environ.get(TOKEN)
    if socket and token is not None:
        return socket, token, False
    script = sys.argv[0] or "client.py"
    raise ClientError(
        "this script was started by hand: there is no job that it could take part in",
        hint=f"run it through a job: FedAvgRecipe(train_script={os.path.basename(script)!r}, "
        "min_clients=2).execute(SimEnv(num_clients=2)); or attach it to a running one with "
        "flare.init(config_file=…)",
        code="misuse",
    )


def _rank(rank: int | str | None) -> int:
    given = os.environ.get("RANK", "0") if rank is None else rank
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ClientError(
            f"flare.init(): `rank` is {given!r}, expected a whole number from 0",
            hint="leave it out to use the RANK that torchrun sets",
            code="misuse",
        )
    return number


def _script_stem() -> str:
    main = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "script"
    return os.path.splitext(os.path.basename(main))[0] or "script"


def _checked_kind(kind: ParamsType | str | None) -> ParamsType:
    try:
        return ParamsType(kind or ParamsType.FULL)
    except ValueError:
        raise ClientError(
            f"the model's `params_type` is {kind!r}, expected ParamsType.FULL or ParamsType.DIFF",
            hint="leave it out for params as they are",
            code="params-type",
        ) from None


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    if not isinstance(metrics, dict):
        raise ClientError(
            f"`metrics` is a {type(metrics).__name__}, expected a dict of numbers", code="misuse"
        )
    numbers = {}
    for key, value in metrics.items():
        if isinstance(value, (str, bytes)):
            number = None
        else:
            try:
                # NumPy and torch scalars know how.
                number = float(value)
            except (TypeError, ValueError):
                number = None
        if number is None:
            raise ClientError(
                f"metrics[{key!r}] is a {type(value).__name__}, expected a number",
                hint="put other facts into `meta`, or log them with flare.log()",
                code="misuse",
            )
        numbers[str(key)] = number
    return numbers


def _meta_json(meta: dict[str, Any] | None) -> str:
    if not meta:
        return "{}"
    if not isinstance(meta, dict):
        raise ClientError(
            f"`meta` is a {type(meta).__name__}, expected a dict", code="misuse"
        )
    steps = meta.get(STEPS)
    if steps is not None:
        try:
            weight = float(steps)
        except (TypeError, ValueError):
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ClientError(
                f'meta["{STEPS}"] is {steps!r}, expected a positive number: the weight of this '
                "update in the mean",
                hint="the number of training steps or samples of this round; leave it out to "
                "weigh all sites alike",
                code="misuse",
            )
    plain = {}
    for key, value in meta.items():
        try:
            plain[str(key)] = _plain(value)
            json.dumps(plain[str(key)])
        except (TypeError, ValueError):
            raise ClientError(
                f"meta[{key!r}] holds a {type(value).__name__}, expected JSON: text, numbers, "
                "lists and dicts",
                hint="arrays belong into `params`, or into flare.state when they stay here",
                code="misuse",
            ) from None
    return json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """NumPy and torch numbers as Python's, inside lists and dicts too."""
    if value is None or isinstance(value, (str, bool, int, float)):
        # Enums count as what they are made of.
        return getattr(value, "value", value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else value


def _code_of(error: BaseException) -> str:
    if isinstance(error, Error) and error.code:
        return error.code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk-full"
    return "raised"


def _users(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not the machinery's."""
    machinery = ("runpy", "firesteel._warm", "firesteel.recipe", "importlib", "_frozen_importlib")
    at = trace
    while at is not None:
        name = str(at.tb_frame.f_globals.get("__name__", ""))
        file = at.tb_frame.f_code.co_filename
        if not (name.startswith(machinery) or file.startswith("<frozen")):
            return at
        at = at.tb_next
    return trace

