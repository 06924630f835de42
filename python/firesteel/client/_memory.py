"""Memory given back between rounds, at a bounded cost."""

from __future__ import annotations

import gc
import logging
import sys
import time
from typing import Any

# Of the time, at most this share: what a job may lose without anybody noticing.
_SHARE = 0.01
# Seconds that the first time is thought to take; a large program's objects are
# walked in about that. From then on it is known.
_GUESS_S = 0.05
# All arenas, as jemalloc's `mallctl` calls them.
_JEMALLOC_PURGE = b"arena.4096.purge"

_log = logging.getLogger("firesteel.memory")


class Housekeeper:
    """Collects garbage and gives free heap pages back after rounds.

    `every` is how often a job asks for it; 0 leaves it to this: whenever the time
    since the last time is long enough for the cost to be at most one percent.
    """

    def __init__(self, *, every: int, empty_cuda: bool) -> None:
        self.every = every
        self.empty_cuda = empty_cuda
        self.rounds = 0
        self.times = 0
        self.cost_s = 0.0
        self._last_cost_s = _GUESS_S
        self._since = time.monotonic()

    def after_round(self) -> None:
        """To be called when a round's result has been taken."""
        self.rounds += 1
        now = time.monotonic()
        if self.every > 0:
            due = self.rounds % self.every == 0
        else:
            due = self._last_cost_s <= _SHARE * (now - self._since)
        if not due:
            return
        passed = now - self._since
        gc.collect()
        collected = time.monotonic()
        trim_heap()
        trimmed = time.monotonic()
        if self.empty_cuda:
            _empty_cuda()
        self._since = time.monotonic()
        self._last_cost_s = cost = self._since - now
        self.cost_s += cost
        self.times += 1
        # What somebody asked for is told; what happens by itself is for who looks.
        _log.log(
            logging.INFO if self.every > 0 else logging.DEBUG,
            "memory given back in %.1f ms (garbage %.1f, heap %.1f, CUDA %.1f): "
            "%.2f %% of the %.1f s since the last time",
            1e3 * cost,
            1e3 * (collected - now),
            1e3 * (trimmed - collected),
            1e3 * (self._since - trimmed),
            100 * cost / passed if passed > 0 else 100,
            passed,
        )


def _empty_cuda() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def trim_heap() -> str:
    """Gives free heap pages back to the system; says through which allocator.

    glibc's and jemalloc's can be told to; musl's and macOS's cannot.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return ""
    purge = getattr(library, "mallctl", None) or getattr(library, "je_mallctl", None)
    if purge is not None:
        purge(_JEMALLOC_PURGE, None, None, None, ctypes.c_size_t(0))
        return "jemalloc"
    trim = getattr(library, "malloc_trim", None)
    if trim is None:
        return ""
    trim(ctypes.c_size_t(0))
    return "glibc"
