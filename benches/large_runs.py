"""One large FedAvg job, run by a system as separate processes over TLS, and watched.

Ours: a server, a process per site and their trainers (or one process that
answers for many sites with one shared file); FLARE: its POC. Both send the same
number of equal bytes and add one to every weight; what came of it is checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import measure
import watch
from figures import GIB, HERE, environment, product, python_of, room, say

# Between two looks for the end of a round, in seconds.
MARKS_EVERY_S = 0.01
# And for the size of the spool.
SPOOL_EVERY_S = 0.2
# What a run may take at most: a start, and then by its bytes.
START_S = 120.0
SLOWEST_BYTES_PER_S = 10e6
# The command line of this process.
OWN = watch.command_of(os.getpid())


@dataclass(frozen=True)
class Setup:
    """What is run."""

    sites: int
    # Of the model.
    size: int
    rounds: int = 4
    tensors: int = 64
    # Bytes of updates that may lie at the server; None for half the free disk.
    spool: int | None = None
    # Sites that answer with one shared file, and train nothing; so many of them
    # do train.
    stub: bool = False
    real: int = 0
    # Trainers are started by a command instead of forked.
    external: bool = False
    # The job's own trainer; None for the one that adds one.
    script: Path | None = None
    # Further arguments of the server and of the sites.
    server_args: tuple[str, ...] = ()
    # What stands between the sites and the server: its address, for the server's.
    through: Callable[[str], str] | None = None
    site_args: tuple[str, ...] = ()

    def moved(self) -> int:
        """Bytes that a round brings to the sites and back."""
        return 2 * self.sites * self.size

    def deadline_s(self) -> float:
        """After which it is given up."""
        return START_S + self.rounds * self.moved() / SLOWEST_BYTES_PER_S

    def disk(self) -> int:
        """Bytes of disk that ours needs: models at the server, spool, outboxes."""
        updates = self.sites * self.size
        spooled = updates if self.spool is None else min(updates, self.spool)
        return 4 * self.size + spooled + 2 * self.trained() * self.size

    def memory(self) -> int:
        """Bytes of pages that ours touches: private copies and page cache."""
        return self.disk() + 2 * self.trained() * self.size

    def trained(self) -> int:
        """Sites with a trainer."""
        return self.real if self.stub else self.sites


@dataclass
class Round:
    """One round of a run."""

    wall_s: float
    cpu_s: float
    # The most bytes that each role held in it.
    held: dict[str, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a run."""

    system: str
    setup: Setup
    # Empty when it did what it should.
    failure: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    # The server's memory when all sites were there and no round had begun.
    server_idle_mb: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def settled(self, figure: str) -> float | None:
        """The median of the second half of the rounds: the first one starts
        processes, the next ones touch files and memory that later ones use again."""
        values = sorted(getattr(one, figure) for one in self.rounds[len(self.rounds) // 2 :])
        return statistics.median_low(values) if values else None

    def owned_mb(self, role: str) -> float | None:
        """The most that all processes of a role held together."""
        peak = self.memory.get("roles", {}).get(role)
        return float(peak["owned_mb"]) if peak else None

    def largest_mb(self, role: str) -> float | None:
        """The most that one process of a role held."""
        peak = self.memory.get("largest_process", {}).get(role)
        return float(peak["owned_mb"]) if peak else None

    def held_in(self, role: str, rounds: range) -> int:
        """The most bytes that a role held in some rounds, counted from zero."""
        return max((self.rounds[at].held.get(role, 0) for at in rounds), default=0)

    def record(self) -> dict[str, Any]:
        """Everything, as data."""
        setup = self.setup
        return {
            "system": self.system,
            "sites": setup.sites,
            "bytes": setup.size,
            "tensors": setup.tensors,
            "spool_bytes": setup.spool,
            "stub": setup.stub,
            "failure": self.failure,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "rounds": [vars(one) for one in self.rounds],
            "server_idle_mb": self.server_idle_mb,
            "memory": self.memory,
            **self.extra,
        }


def our_role(words: list[str]) -> str | None:
    """Server, site (its agent), supervisor and trainer."""
    # A child that has not become itself yet looks like this process.
    if not words or words == OWN:
        return None
    if os.path.basename(words[0]) == "firesteel":
        verbs = words[1:3]
        if verbs == ["dev", "server"]:
            return "server"
        if verbs == ["dev", "site"]:
            return "agent"
        if verbs == ["dev", "stub-site"]:
            return "stubs"
        return "supervisor"
    if any(word.endswith("/job.py") for word in words):
        return None
    # The warm parent and what is forked from it, or what a command starts.
    return "trainer" if "python" in os.path.basename(words[0]) else None


def flare_role(words: list[str]) -> str | None:
    """The server's two processes together, and each client's."""
    if words == OWN:
        return None
    text = " ".join(words)
    if "app.server" in text:
        return "server"
    if "client_train" in text:
        return "agent"
    # The trainer is a thread of the client's job process.
    if "app.client" in text:
        return "trainer"
    return None


class Lines(threading.Thread):
    """Notes when each line of a file appears."""

    def __init__(self, find: Callable[[], Path | None]) -> None:
        super().__init__(daemon=True)
        self.find = find
        self.done = threading.Event()
        self.times: list[float] = []
        # Bytes of updates that lay at the server at once.
        self.spool_peak = 0

    def run(self) -> None:
        read = 0
        next_spool = 0.0
        while not self.done.wait(MARKS_EVERY_S):
            path = self.find()
            if path is not None and time.monotonic() >= next_spool:
                next_spool = time.monotonic() + SPOOL_EVERY_S
                self.spool_peak = max(self.spool_peak, spooled(path.parent.parent))
            if path is None or not path.exists() or path.stat().st_size == read:
                continue
            whole = path.read_bytes()
            read = len(whole)
            self.times += [time.time()] * (whole.count(b"\n") - len(self.times))

    def stop(self) -> None:
        """Ends it."""
        self.done.set()
        self.join()


def spooled(run: Path) -> int:
    """Bytes on the disk of the updates that a run has received."""
    found = 0
    for path in run.glob("objects/**/update-*"):
        with contextlib.suppress(OSError):
            found += path.stat().st_blocks * 512
    return found


def refused(setup: Setup, folder: Path) -> str:
    """Why this run is not even tried here; empty when it can be."""
    return room(folder, setup.disk())


def warm_up(need: int) -> None:
    """Touches the pages that a run will need, as far as they are free."""
    need = min(need, watch.available() - GIB)
    if need > 0:
        took = watch.touch(need)
        say(f"    touched {need / 1e9:.1f} GB of memory in {took:.1f} s")


def run_ours(setup: Setup, place: Path | None = None) -> Outcome:
    """One run of ours."""
    outcome = Outcome("firesteel", setup)
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=place) as name:
        folder = Path(name)
        outcome.failure = refused(setup, folder)
        if not outcome.failure:
            warm_up(setup.memory())
            Ours(setup, folder, outcome).run()
    return outcome


class Ours:
    """A server and its sites in one folder."""

    def __init__(self, setup: Setup, folder: Path, outcome: Outcome) -> None:
        self.setup, self.folder, self.outcome = setup, folder, outcome
        self.python = python_of("core")
        self.env = environment(self.python)
        self.names = [f"site-{index + 1}" for index in range(setup.sites)]
        self.processes: list[subprocess.Popen[str]] = []
        self.groups = watch.try_groups(["server", "site-1"])

    def command(self, words: list[str]) -> str:
        """Runs one to its end."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.env,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout

    def start(self, name: str, words: list[str], output: int | TextIO) -> subprocess.Popen[str]:
        """Starts one, in its group where there are groups."""
        group = self.groups.get(name)
        log = (self.folder / f"{name}.log").open("w", encoding="utf-8")
        with log:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=group.add_self if group else None,
            )
        self.processes.append(process)
        return process

    def prepare(self) -> dict[str, str]:
        """Job, model and certificates."""
        setup = self.setup
        words = [str(self.python), str(HERE / "large" / "job.py")]
        words += ["--sites", str(setup.sites), "--rounds", str(setup.rounds)]
        words += ["--bytes", str(setup.size), "--tensors", str(setup.tensors)]
        if setup.external:
            words.append("--external")
        if setup.script:
            words += ["--script", str(setup.script)]
        made: dict[str, str] = json.loads(self.command(words).splitlines()[-1])
        self.command(
            [str(product()), "dev", "identities", "identities", "--sites", str(setup.sites)]
        )
        return made

    def server_words(self, made: dict[str, str]) -> list[str]:
        """The server's command."""
        words = [str(product()), "dev", "server", "--job", made["job"]]
        words += ["--identity", str(self.folder / "identities" / "server")]
        words += ["--root", str(self.folder / "server"), "--console", "off"]
        if self.setup.spool is not None:
            words += ["--spool", str(self.setup.spool)]
        return [*words, *self.setup.server_args]

    def start_sites(self, address: str, made: dict[str, str]) -> None:
        """Every site, or one process for all of them."""
        common = ["--connect", address, "--console", "off", *self.setup.site_args]
        identities = self.folder / "identities"
        trained = self.names[: self.setup.trained()]
        stubs = self.names[self.setup.trained() :]
        if stubs:
            words = [str(product()), "dev", "stub-site", "--names", ",".join(stubs)]
            words += ["--identities", str(identities), "--file", made["model"]]
            words += ["--root", str(self.folder / "sites"), *common]
            self.start("stubs", words, subprocess.DEVNULL)
        for name in trained:
            words = [str(product()), "dev", "site", "--name", name]
            words += ["--identity", str(identities / name)]
            words += ["--root", str(self.folder / name)]
            words += ["--python", str(self.python), *common]
            self.start(name, words, subprocess.DEVNULL)

    def rounds_file(self) -> Path | None:
        """Where the server writes a line per round."""
        found = list((self.folder / "server").glob("*/*/metrics/rounds.jsonl"))
        return found[0] if found else None

    def run(self) -> None:
        """All of it; what is left of the processes is ended."""
        measure.adopt_orphans()
        try:
            self.measured()
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            self.outcome.failure = f"{type(error).__name__}: {error}"
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            left = measure.reap(time.monotonic() + 10.0)
            if left and not self.outcome.failure:
                self.outcome.failure = f"{left} processes were left"
            for group in self.groups.values():
                group.close()
        if self.outcome.failure:
            self.outcome.extra["logs"] = self.tails()

    def measured(self) -> None:
        """From the server's start to its end."""
        outcome, setup = self.outcome, self.setup
        made = self.prepare()
        looking = watch.Watch(our_role, self.groups)
        lines = Lines(self.rounds_file)
        before = measure.children_s()
        started = time.time()
        with looking.watching():
            lines.start()
            server = self.start("server", self.server_words(made), subprocess.PIPE)
            assert server.stdout is not None
            event = json.loads(server.stdout.readline() or "{}")
            if "address" not in event:
                raise ValueError("the server did not say where it listens")
            # Long enough for two looks at a server that has nothing to do.
            time.sleep(3 * watch.EVERY_S)
            idle = looking.owned_between("server", 0.0, time.time())
            ready = time.time()
            through = setup.through or (lambda address: address)
            self.start_sites(through(event["address"]), made)
            try:
                said, _ = server.communicate(timeout=setup.deadline_s())
                for process in self.processes:
                    process.wait(timeout=60.0)
            except subprocess.TimeoutExpired:
                said = ""
                outcome.failure = f"still running after {setup.deadline_s():.0f} s"
            outcome.wall_s = time.time() - started
            lines.stop()
        outcome.cpu_s = measure.children_s() - before
        outcome.memory = looking.record()
        outcome.server_idle_mb = idle / 1e6
        outcome.extra["spool_peak_mb"] = lines.spool_peak / 1e6
        marks = [ready, *lines.times]
        outcome.rounds = [
            Round(
                end - start,
                looking.cpu_at(end) - looking.cpu_at(start),
                {role: looking.owned_between(role, start, end) for role in looking.owned},
            )
            for start, end in zip(marks, marks[1:], strict=False)
        ]
        if not outcome.failure:
            outcome.failure = self.check(said, made)

    def check(self, said: str, made: dict[str, str]) -> str:
        """What is wrong with the result; empty when nothing is."""
        last = json.loads(said.splitlines()[-1]) if said.strip() else {}
        if last.get("status") != "completed":
            return f"the job ended as {last.get('status')}: {last.get('outcome')}"
        for process in self.processes:
            if process.returncode:
                return f"a process ended with code {process.returncode}"
        if len(self.outcome.rounds) != self.setup.rounds:
            return f"{len(self.outcome.rounds)} rounds were committed"
        # What several sites answered with differs, and so would the sum.
        if self.setup.script or self.setup.real:
            return ""
        gained = float(self.setup.rounds) * (0 if self.setup.stub else 1)
        first = first_weight(Path(made["model"]))
        models = list(Path(last["run_dir"]).glob("models/*.safetensors"))
        newest = max(models, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return "there is no model"
        # Half a unit per addition is more than the rounding of float32.
        if abs(first_weight(newest) - first - gained) > 1e-5 * (1 + gained):
            return f"the first weight became {first_weight(newest)} from {first}"
        return ""

    def tails(self) -> dict[str, str]:
        """The last lines of every process's talk."""
        return {
            path.stem: path.read_text(encoding="utf-8", errors="replace")[-2000:]
            for path in sorted(self.folder.glob("*.log"))
        }


def first_weight(path: Path) -> float:
    """The first number of a model file's first tensor."""
    from array import array

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        first = header[min(header)]
        file.seek(8 + length + first["data_offsets"][0])
        return float(array("f", file.read(4))[0])


def run_flare(setup: Setup, place: Path | None = None) -> Outcome:
    """One run of FLARE's POC."""
    outcome = Outcome("flare", setup)
    python = python_of("flare")
    with tempfile.TemporaryDirectory(prefix="firesteel-bench-", dir=place) as name:
        folder = Path(name)
        words = [str(python), str(HERE / "peers" / "flare" / "large_job.py")]
        words += ["--sites", str(setup.sites), "--rounds", str(setup.rounds)]
        words += ["--megabytes", str(setup.size >> 20), "--tensors", str(setup.tensors)]
        # Twelve times the model at the server and twice at each client.
        warm_up((12 + 2 * setup.sites) * setup.size)
        looking = watch.Watch(flare_role)
        # FLARE is slow to start and to stop, beyond its rounds.
        deadline = 2 * START_S + setup.deadline_s()
        with looking.watching():
            run = measure.run(
                words,
                cwd=folder,
                env={**environment(python), "HOME": str(folder), "LARGE_TIMEOUT_S": str(deadline)},
                deadline_s=deadline,
                expect="status: FINISHED:COMPLETED",
            )
        outcome.wall_s, outcome.cpu_s, outcome.failure = run.wall_s, run.cpu_s, run.failure
        outcome.memory = looking.record()
        marks = folder / "marks.jsonl"
        if marks.exists():
            read_flare(outcome, looking, [json.loads(line) for line in marks.open()])
        elif not outcome.failure:
            outcome.failure = "its server noted nothing"
        if outcome.failure:
            outcome.extra["logs"] = {"job": run.output}
        shutil.rmtree(folder / "poc", ignore_errors=True)
    return outcome


def read_flare(outcome: Outcome, looking: watch.Watch, marks: list[dict[str, Any]]) -> None:
    """Rounds from the marks that its server made."""
    starts = [mark["at"] for mark in marks if mark["what"] == "round"]
    done = [mark for mark in marks if mark["what"] == "round done"]
    ends = [*starts[1:], *(mark["at"] for mark in done[-1:])]
    outcome.rounds = [
        Round(end - start, looking.cpu_at(end) - looking.cpu_at(start))
        for start, end in zip(starts, ends, strict=False)
    ]
    gained = done[-1]["gained"] if done else 0.0
    if not outcome.failure and abs(gained - outcome.setup.rounds) > 1e-3:
        outcome.failure = f"the first weight gained {gained}"


def tell(outcome: Outcome) -> None:
    """One line about a run."""
    setup = outcome.setup
    what = f"{outcome.system}, {setup.size / GIB:.3g} GiB × {setup.sites}"
    if outcome.failure:
        say(f"  {what}: {outcome.failure}")
        for name, text in outcome.extra.get("logs", {}).items():
            say(f"    {name}: {text[-600:]}")
        return
    say(
        f"  {what}: {outcome.settled('wall_s') or 0:.2f} s and"
        f" {outcome.settled('cpu_s') or 0:.2f} CPU-s a round,"
        f" server {outcome.owned_mb('server') or 0:.0f} MB"
    )
