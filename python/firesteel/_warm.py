"""The warm parent: a Python process that has its imports behind it and forks trainers.

Never: runs user code, starts a thread, or opens a socket; it speaks only with
the supervisor that started it. Nothing here needs the compiled module.

Start at `main`; the messages are described in `docs/specs/supervise.md`.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import faulthandler
import fcntl
import gc
import hashlib
import importlib
import importlib.machinery
import io
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

_signal: Any = importlib.import_module("_signal")
# `signal.signal` turns what it is given and what it answers into enumerations.
set_signal: Callable[[int, Any], Any] = _signal.signal
DEFAULT: int = _signal.SIG_DFL

PROTOCOL = 1

ALLOWED_ROOTS = frozenset({"numpy", "scipy", "sklearn", "pandas", "torch"})
"""Only these, the standard library, and what lies below them are imported ahead:
whatever else a job names could be user code, which has to run in the trainer alone."""

ACTING = frozenset({"antigravity", "idlelib", "this", "tkinter", "turtle", "turtledemo"})
"""Of the standard library: what does something when it is imported."""

SOURCE_CACHE = 64
"""Compiled scripts that are kept; a job has one, or one per site."""

FRAME = 1024 * 1024
"""Bytes of one frame, as in the Rust side's `limits::FRAME`."""

READ = 4096
"""Bytes of one read; a request has some hundred."""

BESIDE = socket.CMSG_SPACE(8 * 4)
"""Room for the descriptors that may come with one read."""

DECODER = json.JSONDecoder()

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""`ru_maxrss` is in kibibytes on Linux, in bytes on macOS."""

REHEARSALS = 10
"""Python 3.11 and later quicken code after it has run a few times."""

WATCHED_SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGALRM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
"""What scripts commonly handle; a worker sets them back."""

F_SETSIG = 10
"""Linux's `fcntl` to choose the signal of `O_ASYNC`; the `fcntl` module lacks it."""


def main() -> None:
    """Serve the supervisor at the other end of standard input until it hangs up."""
    options = dict(
        argument[2:].split("=", 1) for argument in sys.argv[1:] if argument.startswith("--")
    )
    lifeline = int(options.get("lifeline", "-1"))
    preload = [name for name in options.get("preload", "").split(",") if name]
    reuse = options.get("reuse") == "1"
    # Meant for this process's own loader, which has read it.
    os.environ.pop(options.get("unset", ""), None)

    connection = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    started = time.monotonic()
    failed = import_ahead(preload)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    # A crash in native code leaves the Python lines it came from in the log.
    faulthandler.enable(2)
    rehearse()
    # The objects that exist now are never garbage in a trainer. Frozen, they are
    # not touched by its collections, and their pages stay shared.
    gc.collect()
    filling = fill_holes()
    gc.freeze()
    # On again in the trainers: what comes and goes here makes no cycles.
    gc.disable()

    server = Server(connection, lifeline, reuse)
    server.report(
        kind="ready",
        protocol=PROTOCOL,
        python=sys.version.split()[0],
        failed=failed,
        import_ms=round((time.monotonic() - started) * 1000),
    )
    # In a trainer, this is where the fork comes out: with an empty stack.
    trainer = server.run()
    if trainer is not None:
        trainer()
    del filling


def import_ahead(preload: list[str]) -> dict[str, str]:
    """Import what trainers will need; return what failed, with the reason."""
    failed: dict[str, str] = {}
    names = ["numpy", "numpy.random", *preload]
    for name in dict.fromkeys(names):
        root = name.split(".", 1)[0]
        if root not in ALLOWED_ROOTS and not is_standard(root):
            failed[name] = "not one of the modules that may be imported ahead"
            continue
        reason = try_import(name)
        if reason is not None:
            failed[name] = reason
    # The product itself, so that `import firesteel.client` costs a trainer nothing.
    for name in ("firesteel._native", "firesteel.client"):
        reason = try_import(name)
        if reason is not None:
            failed[name] = reason
    return failed


def is_standard(root: str) -> bool:
    """Whether the standard library's module is what an import would find, and
    may be found ahead."""
    if root not in sys.stdlib_module_names or root in ACTING:
        return False
    if root in sys.builtin_module_names:
        return True
    # A file of that name in a folder of PYTHONPATH would come first.
    found = importlib.machinery.PathFinder.find_spec(root)
    library = os.path.dirname(os.__file__) + os.sep
    return found is not None and (found.origin or "").startswith(library)


def try_import(name: str) -> str | None:
    """Import a module; return why it could not be."""
    try:
        importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {error}"[:1000]
    return None


def rehearse() -> None:
    """Do, without effect, what every trainer does at its start.

    Caches, quickened code and lazy imports then exist once, in pages that are
    shared, and are not made anew by each trainer.
    """
    try:
        play = importlib.import_module("firesteel.client._rehearsal").play
        for _ in range(REHEARSALS):
            play()
            rehearse_start()
    except Exception as error:  # trainers then start more slowly, no more
        print(f"the rehearsal failed: {type(error).__name__}: {error}", file=sys.stderr)


def rehearse_start() -> None:
    """The steps from the fork to the script, as far as they can be taken back."""
    kept = sys.argv, sys.path[:], sys.modules["__main__"]
    name = "FIRESTEEL_REHEARSAL"
    request = {"cwd": os.getcwd(), "env": {name: ""}, "args": [""]}
    reading, writing = os.pipe()
    own = reopen(reading)
    if own >= 0:
        hold_on_to(own)
        os.close(own)
    os.close(reading)
    os.close(writing)
    try:
        settle(request, "rehearsal", "", seeds_of(""))
        execute(compile("", "rehearsal", "exec"), "rehearsal")
    finally:
        os.environ.pop(name, None)
        sys.argv, sys.path[:], sys.modules["__main__"] = kept


def fill_holes() -> list[bytes]:
    """Take the places that are free among older objects, for as long as the
    result is kept.

    What a trainer makes then lies together on a few new pages, and does not cost
    it the copy of an old page for every hole that it falls into.
    """
    filling: list[bytes] = []
    empty = sys.getsizeof(b"")
    for size in range(48, 513, 16):  # the classes of Python's allocator
        last = in_a_row = 0
        while in_a_row < 8 and len(filling) < 100_000:
            filling.append(bytes(size - empty))
            place = id(filling[-1])
            in_a_row = in_a_row + 1 if place - last == size else 0
            last = place
    return filling


class Source(NamedTuple):
    """A script that trainers run."""

    stamp: tuple[int, int]
    folder: str
    """Where it lies, without symbolic links."""
    code: types.CodeType | None
    """None when it does not compile: the trainer tries again and says why."""


class Worker:
    """A fork that runs one script after another, where trainers are reused."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.busy = True


class Server:
    """Reads requests, forks, and reports exits, all in one thread."""

    def __init__(self, connection: socket.socket, lifeline: int, reuse: bool) -> None:
        self.connection = connection
        self.lifeline = lifeline
        self.reuse = reuse
        self.workers: dict[int, Worker] = {}
        self.channels: dict[int, Worker] = {}
        self.idle: list[Worker] = []
        self.poll = select.poll()
        self.buffer = b""
        self.living = 0
        self.descriptors: list[int] = []
        self.sources: dict[str, Source] = {}
        self.wakeup, self.waker = os.pipe()
        self.top = highest_descriptor()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self.waker, False)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Ctrl-C is for the job; the supervisor ends this process when it is time.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> Callable[[], NoReturn] | None:
        """Serve until the supervisor hangs up (None) or this is a trainer."""
        connection, wakeup = self.connection.fileno(), self.wakeup
        poll = self.poll
        poll.register(connection, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        # After each fork this process copies every page it writes to anew, so
        # this loop does as little as it can.
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wakeup:
                    os.read(wakeup, 512)
                    self.reap()
                    continue
                if descriptor != connection:
                    self.finished(descriptor)
                    continue
                try:
                    data, beside, _, _ = self.connection.recvmsg(
                        READ, BESIDE, socket.MSG_CMSG_CLOEXEC
                    )
                except ConnectionError:
                    return None
                for _, _, numbers in beside:
                    self.descriptors += struct.unpack(f"{len(numbers) // 4}i", numbers)
                if not data:
                    return None
                self.buffer += data
                trainer = self.obey()
                if trainer is not None:
                    return trainer

    def obey(self) -> Callable[[], NoReturn] | None:
        """Fork a trainer for every complete request."""
        while len(self.buffer) >= 4:
            end = 4 + int.from_bytes(self.buffer[:4], "little")
            if end > 4 + FRAME:
                raise SystemExit(f"a request of {end - 4} bytes")
            if len(self.buffer) < end:
                break
            request, _ = DECODER.raw_decode(self.buffer[4:end].decode())
            self.buffer = self.buffer[end:]
            stdout, stderr = self.descriptors[:2]
            del self.descriptors[:2]
            trainer = self.fork(request, stdout, stderr)
            if trainer is not None:
                return trainer
            os.close(stdout)
            os.close(stderr)
        return None

    def fork(
        self, request: dict[str, Any], stdout: int, stderr: int
    ) -> Callable[[], NoReturn] | None:
        """Fork one trainer; return, in the trainer, what it is to do."""
        script = os.path.join(request["cwd"], request["script"])
        try:
            source = self.compile(script)
        except OSError as error:
            self.report(
                kind="failed",
                id=request["id"],
                code="script-missing",
                message=missing(script, error),
                hint="paths are taken relative to the folder where the job is started",
            )
            return None
        seeds = seeds_of(request["seed"])
        if self.idle and self.hand_over(request, stdout, stderr):
            return None
        ours, theirs = socket.socketpair() if self.reuse else (None, None)
        try:
            pid = os.fork()
        except OSError as error:
            self.report(
                kind="failed",
                id=request["id"],
                code="spawn-failed",
                message=f"no process could be made for the trainer: {error.strerror}",
                hint="see `ulimit -u`, and how much memory is free",
            )
            return None
        if pid:
            self.living += 1
            self.send(b'{"kind":"started","id":%d,"pid":%d}' % (request["id"], pid))
            if ours is not None and theirs is not None:
                theirs.close()
                worker = Worker(pid, ours)
                self.workers[pid] = self.channels[ours.fileno()] = worker
                self.poll.register(ours, select.POLLIN)
            return None
        signal.set_wakeup_fd(-1)
        self.connection.detach()
        for worker in self.workers.values():
            worker.channel.detach()
        channel = -1
        if ours is not None and theirs is not None:
            ours.detach()
            channel = theirs.detach()
        home = Home((stdout, stderr), self.lifeline, channel, max(self.top, stdout, stderr, channel))
        task = Task(request, script, source, seeds)
        if channel >= 0:
            return lambda: become_worker(task, self.compile, home)
        return lambda: become_trainer(task, home)

    def hand_over(self, request: dict[str, Any], stdout: int, stderr: int) -> bool:
        """Have an idle worker run the script; False when there is none any more."""
        while self.idle:
            worker = self.idle.pop()
            body = json.dumps(request).encode()
            frame = len(body).to_bytes(4, "little") + body
            try:
                sent = socket.send_fds(worker.channel, [frame], [stdout, stderr])
                worker.channel.sendall(frame[sent:])
            except OSError:
                continue  # it has ended; `reap` sees to that
            worker.busy = True
            self.send(b'{"kind":"started","id":%d,"pid":%d}' % (request["id"], worker.pid))
            return True
        return False

    def finished(self, descriptor: int) -> None:
        """Report a script that has ended in a worker that lives on."""
        worker = self.channels[descriptor]
        try:
            said = worker.channel.recv(FINISHED.size)
        except ConnectionError:
            said = b""
        if len(said) < FINISHED.size:  # it is ending: `reap` reports that
            self.poll.unregister(descriptor)
            return
        max_rss, cpu_us = FINISHED.unpack(said)
        worker.busy = False
        self.idle.append(worker)
        self.send(
            b'{"kind":"exited","pid":%d,"status":0,"max_rss":%d,"cpu_us":%d,"kept":true}'
            % (worker.pid, max_rss, cpu_us)
        )

    def compile(self, script: str) -> Source:
        """The script, from the cache when the file has not changed.

        Compiling runs none of it.
        """
        found = os.stat(script)
        stamp = (found.st_mtime_ns, found.st_size)
        cached = self.sources.get(script)
        if cached is not None and cached.stamp == stamp:
            return cached
        try:
            code = compile_script(script)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            code = None
        if len(self.sources) >= SOURCE_CACHE:
            self.sources.clear()
        source = Source(stamp, os.path.dirname(os.path.realpath(script)), code)
        self.sources[script] = source
        return source

    def reap(self) -> None:
        """Report every trainer that has ended."""
        while self.living:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            self.living -= 1
            worker = self.workers.pop(pid, None)
            if worker is not None:
                if not worker.busy:
                    self.idle = [other for other in self.idle if other is not worker]
                descriptor = worker.channel.fileno()
                del self.channels[descriptor]
                with contextlib.suppress(KeyError):
                    self.poll.unregister(descriptor)
                worker.channel.close()
                if not worker.busy:
                    continue
            self.send(
                b'{"kind":"exited","pid":%d,"status":%d,"max_rss":%d,"cpu_us":%d}'
                % (
                    pid,
                    status,
                    usage.ru_maxrss * RSS_UNIT,
                    (usage.ru_utime + usage.ru_stime) * 1e6,
                )
            )

    def report(self, **fields: Any) -> None:
        """Tell the supervisor."""
        self.send(json.dumps(fields).encode())

    def send(self, body: bytes) -> None:
        """Send the supervisor JSON."""
        try:
            self.connection.sendall(len(body).to_bytes(4, "little") + body)
        except ConnectionError:
            # Without a supervisor there is nobody to serve.
            os._exit(1)


def missing(script: str, error: OSError) -> str:
    """Say why a script cannot be read."""
    if error.errno == errno.ENOENT:
        return f"the training script `{script}` does not exist"
    if error.errno == errno.EISDIR:
        return f"the training script `{script}` is not a file"
    return f"the training script `{script}` cannot be read: {error.strerror}"


def compile_script(script: str) -> types.CodeType:
    """Compile a file as `python script.py` does."""
    with io.open_code(script) as file:
        return compile(file.read(), script, "exec", dont_inherit=True)


# From here on: the trainer.


class Home(NamedTuple):
    """What a trainer finds open when it is forked."""

    output: tuple[int, int]
    lifeline: int
    channel: int
    """To the warm parent, for a worker; else -1."""
    top: int
    """The highest descriptor."""


class Task(NamedTuple):
    """What a trainer is to run."""

    request: dict[str, Any]
    script: str
    source: Source
    seeds: Seeds | None


CHANNEL = 4
"""The descriptor by which a worker speaks with the warm parent."""

FINISHED = struct.Struct("<QQ")
"""What a worker says when a script has ended: peak memory in bytes, CPU in µs."""


def become_trainer(task: Task, home: Home) -> NoReturn:
    """Turn this fork of the warm parent into a trainer, and run its script."""
    status = 1
    try:
        leave_home(home)
        settle(task.request, task.script, task.source.folder, task.seeds)
        status = run_script(task.script, task.source.code)
    except BaseException:  # nothing may come back from a trainer
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def become_worker(task: Task, compile_cached: Callable[[str], Source], home: Home) -> NoReturn:
    """Turn this fork into a worker: run this script, then those that follow, for
    as long as each leaves the process as it found it."""
    status = 1
    try:
        leave_home(home)
        channel = socket.socket(fileno=CHANNEL)
        slate = Slate()
        while True:
            settle(task.request, task.script, task.source.folder, task.seeds)
            status = run_script(task.script, task.source.code, slate)
            if not slate.clean:
                break
            spent = slate.wipe(task.source.folder, task.request["env"])
            channel.sendall(FINISHED.pack(*spent))
            following = receive_task(channel, compile_cached)
            if following is None:
                break
            task = following
    except BaseException:  # nothing may come back from a trainer
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def receive_task(
    channel: socket.socket, compile_cached: Callable[[str], Source]
) -> Task | None:
    """The next script for a worker, with its output in place; None at the end."""
    data, descriptors, _, _ = socket.recv_fds(channel, READ, 2)
    if not data:
        return None
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        more = channel.recv(READ)
        if not more:
            return None
        data += more
    for target, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    request = json.loads(data[4:])
    script = os.path.join(request["cwd"], request["script"])
    return Task(request, script, compile_cached(script), seeds_of(request["seed"]))


class Slate:
    """What a process was like before a script ran in it, so that it can be made so again.

    What cannot be taken back (threads, children, open files, an exit code, what
    is registered for the exit) ends the process instead. What is neither: changes
    that a script makes inside a library it shares with the next.
    """

    def __init__(self) -> None:
        root = logging.getLogger()
        self.clean = False
        self.environ = dict(os.environ)
        self.path = sys.path[:]
        self.modules = set(sys.modules)
        self.main = sys.modules["__main__"]
        self.excepthook = sys.excepthook
        self.streams = sys.stdout, sys.stderr
        self.handlers, self.level = root.handlers[:], root.level
        self.signals = {number: signal.getsignal(number) for number in WATCHED_SIGNALS}
        self.exits = atexit._ncallbacks()
        self.descriptors: int | None = None
        self.memory = 0
        self.cpu = 0.0

    def look(self, status: int) -> bool:
        """Whether a script that has ended left nothing that cannot be taken back."""
        client: Any = sys.modules.get("firesteel.client")
        if client is not None and hasattr(client, "_forget"):
            client._forget()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.clean = (
            status == 0
            and threading.active_count() == 1
            and atexit._ncallbacks() == self.exits
            and not has_children()
            and not self.has_opened()
            and not self.has_grown()
        )
        return self.clean

    def has_opened(self) -> bool:
        """Whether more files are open than after the first script."""
        count = len(os.listdir("/proc/self/fd"))
        if self.descriptors is None:
            # What the first one opened, say /dev/urandom, each would.
            self.descriptors = count
        return count > self.descriptors

    def has_grown(self) -> bool:
        """Whether the process's peak is well above that of its first script."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.memory = self.memory or peak
        return peak > 2 * self.memory

    def wipe(self, folder: str, env: dict[str, str]) -> tuple[int, int]:
        """Take back what a script has changed; return its peak memory and CPU time."""
        root = logging.getLogger()
        root.handlers[:], root.level = self.handlers, self.level
        sys.excepthook = self.excepthook
        sys.stdout, sys.stderr = self.streams
        for number, handler in self.signals.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if os.environ != self.environ:
            os.environ.clear()
            os.environ.update(self.environ)
        sys.path[:] = self.path
        sys.modules["__main__"] = self.main
        extra = env.get("PYTHONPATH", "").split(os.pathsep)
        own = tuple(path.rstrip(os.sep) + os.sep for path in (folder, *extra) if path)
        for name in sys.modules.keys() - self.modules:
            file = str(getattr(sys.modules[name], "__file__", None) or "")
            installed = "site-packages" in file or name.startswith("firesteel.")
            if os.path.realpath(file).startswith(own) and not installed:
                # The job's own, which keeps what it likes in its variables.
                del sys.modules[name]
        self.modules = set(sys.modules)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime
        spent, self.cpu = cpu - self.cpu, cpu
        return usage.ru_maxrss * RSS_UNIT, int(spent * 1e6)


def has_children() -> bool:
    """Whether this process has any, ended ones included."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def leave_home(home: Home) -> None:
    """Give up everything that belongs to the warm parent."""
    gc.enable()
    os.setsid()
    channel = -1
    if home.channel >= 0:
        # Out of the way of the places that are filled below.
        channel = fcntl.fcntl(home.channel, fcntl.F_DUPFD_CLOEXEC, 5)
    set_signal(signal.SIGCHLD, DEFAULT)
    set_signal(signal.SIGINT, signal.default_int_handler)
    own = reopen(home.lifeline) if home.lifeline >= 0 else -1
    os.dup2(home.output[0], 1)
    os.dup2(home.output[1], 2)
    first_foreign = 3
    if own >= 0:
        if own != 3:
            os.dup2(own, 3, inheritable=False)
        hold_on_to(3)
        first_foreign = 4
    if channel >= 0:
        os.dup2(channel, CHANNEL, inheritable=False)
        first_foreign = CHANNEL + 1
        if own < 0:
            os.closerange(3, CHANNEL)
    os.closerange(first_foreign, max(home.top, own, channel) + 1)


def reopen(lifeline: int) -> int:
    """Open the lifeline anew: who is signalled belongs to an open file, and
    the warm parent's other trainers share the inherited one."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{lifeline}", flags)
    except OSError:
        return -1


def hold_on_to(lifeline: int) -> None:
    """Have the kernel end this process when the supervisor's end of the pipe closes.

    Unlike a parent-death signal this does not fire when the warm parent dies, for
    then the supervisor adopts its trainers.
    """
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    except OSError:
        return  # not Linux: the supervisor's own clean-up has to do
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):
        # It closed before the signal was armed.
        os.kill(os.getpid(), signal.SIGKILL)


def highest_descriptor() -> int:
    """The highest descriptor that is open."""
    try:
        return max(map(int, os.listdir("/proc/self/fd")))
    except OSError:
        return min(os.sysconf("SC_OPEN_MAX"), 65536) - 1


def settle(request: dict[str, Any], script: str, folder: str, seeds: Seeds | None) -> None:
    """Arrange this process as a fresh interpreter would find itself."""
    os.chdir(request["cwd"])
    env: dict[str, str] = request["env"]
    os.environ.update(env)
    if "TZ" in env:
        time.tzset()
    sys.argv = [script, *request["args"]]
    extra = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [folder, *extra]
    seed_all(seeds)
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        # Taken when the module was imported, in the warm parent.
        process.ORIGINAL_DIR = request["cwd"]
        process.current_process().authkey = os.urandom(32)


class Seeds(NamedTuple):
    """What the generators are seeded with."""

    python: int
    numpy: int
    torch: int


def seeds_of(text: str | None) -> Seeds | None:
    """Seeds from any text, say `"{job seed}/{site}/{round}"`: equal texts give
    equal numbers, on every machine."""
    if text is None:
        return None
    # Of hashlib's own, not OpenSSL's, which would look for itself in every process.
    digest = hashlib.blake2b(text.encode(), digest_size=24).digest()
    python, numpy, torch = struct.unpack("<QIxxxxQ", digest)
    return Seeds(python, numpy, torch >> 1)


def seed_generators(text: str | None) -> None:
    """Seed the global generators from a text; None seeds from the operating system."""
    seed_all(seeds_of(text))


def seed_all(seeds: Seeds | None) -> None:
    """Seed Python's, NumPy's and torch's global generators, those that are loaded."""
    numpy_random: Any = sys.modules.get("numpy.random")
    torch: Any = sys.modules.get("torch")
    if seeds is None:
        random.seed()
        if numpy_random is not None:
            numpy_random.seed()
        if torch is not None:
            torch.seed()
        return
    random.seed(seeds.python)
    if numpy_random is not None:
        numpy_random.seed(seeds.numpy)
    if torch is not None:
        torch.manual_seed(seeds.torch)


def execute(code: types.CodeType | None, script: str) -> None:
    """Run code as `__main__`."""
    module = types.ModuleType("__main__")
    module.__file__ = script
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", script)
    module.__dict__["__cached__"] = None
    sys.modules["__main__"] = module
    exec(compile_script(script) if code is None else code, module.__dict__)


def run_script(script: str, code: types.CodeType | None, slate: Slate | None = None) -> int:
    """Run the script as `__main__`; return the exit code of the process.

    With a slate that is still clean afterwards, the process may go on.
    """
    status = 0
    try:
        execute(code, script)
    except SystemExit as stop:
        status = exit_code(stop)
    except KeyboardInterrupt as error:
        show(error, script)
        leave()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        show(error, script)
        status = 1
    if slate is not None and slate.look(status):
        return 0
    late = leave()
    return late if status == 0 and late is not None else status


def exit_code(stop: SystemExit) -> int:
    """What `sys.exit` was given, as the interpreter takes it."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def show(error: BaseException, script: str) -> None:
    """Tell the agent and the log of an exception that nobody caught."""
    trace = error.__traceback__
    # The frames above the script's own are this module's.
    while trace is not None and trace.tb_frame.f_code.co_filename != script:
        trace = trace.tb_next
    error = error.with_traceback(trace)
    client = sys.modules.get("firesteel.client")
    report = getattr(client, "_report_crash", None)
    if report is not None:
        try:
            report(type(error), error, trace)
        except Exception as failure:
            print(f"the crash could not be reported: {failure}", file=sys.stderr)
    sys.excepthook(type(error), error, trace)


def leave() -> int | None:
    """Do what the interpreter does at its end, up to the last flush.

    Freeing the memory object by object is left out: it would only copy the pages
    that are still shared with the warm parent.
    """
    status = None
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
    except SystemExit as stop:
        status = exit_code(stop)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            status = 120  # as the interpreter exits when it cannot flush
    return status
