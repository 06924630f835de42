"""Small values that recipes take."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from firesteel.recipe import _fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta


class FrameworkType(str, Enum):
    """What the training script computes with."""

    RAW = "raw"
    NUMPY = "numpy"
    SKLEARN = "sklearn"
    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"

    def __str__(self) -> str:
        return self.value


class TransferType(str, Enum):
    """What a site sends back: its params, or their difference to what it received."""

    FULL = "FULL"
    DIFF = "DIFF"

    def __str__(self) -> str:
        return self.value


class ExchangeFormat(str, Enum):
    """What params look like in the script."""

    RAW = "raw"
    NUMPY = "numpy"
    PYTORCH = "pytorch"
    KERAS_LAYER_WEIGHTS = "keras_layer_weights"

    def __str__(self) -> str:
        return self.value


class TrimmedMean:
    """The mean of every number without the largest and smallest share of sites.

    >>> TrimmedMean(0.2)
    TrimmedMean(0.2)

    Args:
        trim: the share that is left out at either end, from 0 to under 0.5.
    """

    __slots__ = ("trim",)

    def __init__(self, trim: float = 0.1) -> None:
        if isinstance(trim, bool) or not isinstance(trim, (int, float)) or not 0 <= trim < 0.5:
            raise _fields.refuse("TrimmedMean.trim", trim, "a share from 0 to under 0.5")
        self.trim = float(trim)

    def __repr__(self) -> str:
        return f"TrimmedMean({self.trim!r})"


class Policy:
    """What happens when sites are late, fail or leave.

    Args:
        quorum_start: sites needed before the job begins; `min_clients` when left out.
        quorum_round: updates needed in every round; `min_clients` when left out.
        required_sites: sites without which nothing goes on.
        round_deadline: seconds that a round may take.
        task_deadline: seconds that a site may take for its task.
        grace: seconds to wait for the others once the quorum is there; when
            left out, all that are at work are waited for.
        late: `drop` an update that comes after its round, or let it count in
            the `next_round`.
        on_failure: `retry` a site that failed, in the next round, or `exclude` it.
        max_failures: failures in a row after which a site is left out.
    """

    def __init__(
        self,
        *,
        quorum_start: int | None = None,
        quorum_round: int | None = None,
        required_sites: Sequence[str] = (),
        round_deadline: float | timedelta | None = None,
        task_deadline: float | timedelta | None = None,
        grace: float | timedelta | None = None,
        late: str = "drop",
        on_failure: str = "retry",
        max_failures: int = 3,
    ) -> None:
        def count(field: str, value: int | None) -> int | None:
            return None if value is None else _fields.whole(f"policy.{field}", value, least=1)

        def seconds(field: str, value: Any, zero: bool) -> float | None:
            return None if value is None else _fields.seconds(f"policy.{field}", value, zero=zero)

        if isinstance(required_sites, str):
            raise _fields.refuse("policy.required_sites", required_sites, "a list of site names")
        self._json: dict[str, Any] = {
            "quorum_start": count("quorum_start", quorum_start),
            "quorum_round": count("quorum_round", quorum_round),
            "required_sites": [_fields.name("policy.required_sites", s) for s in required_sites],
            "round_s": seconds("round_deadline", round_deadline, False),
            "task_s": seconds("task_deadline", task_deadline, False),
            "grace_s": seconds("grace", grace, True),
            "late": _fields.choice("policy.late", late, ("drop", "next_round")),
            "on_failure": _fields.choice("policy.on_failure", on_failure, ("retry", "exclude")),
            "max_failures": _fields.whole("policy.max_failures", max_failures, least=1),
        }

    def to_json(self) -> dict[str, Any]:
        """The policy as the job spec has it."""
        return dict(self._json)
