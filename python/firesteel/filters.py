"""What models pass on their way between server and sites.

    from firesteel.filters import ExcludeVars, Quantize

    recipe = FedAvgRecipe(
        …, filters=[ExcludeVars("bn"), Quantize("nf4", error_feedback=True)]
    )

Built-in filters run in the roles, window by window; the receiver restores what it
gets by itself, in the dtype and kind that were sent. A `Filter` of your own runs in
the trainer's process.
"""

from __future__ import annotations

import abc
import copy
import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from firesteel.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firesteel.client import FLModel

    Patterns = str | Sequence[str] | None

__all__ = [
    "Compress",
    "ExcludeVars",
    "Filter",
    "FilterContext",
    "KeepVars",
    "OnlyKind",
    "Quantize",
    "TopK",
]

TASK_DATA, RESULT = "task_data", "result"
SCHEMES = ("fp16", "bf16", "int8", "fp4", "nf4", "adaptive")
# What FLARE calls them.
_FORMER = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "blockwise8": "int8",
    "float4": "fp4",
    "normfloat4": "nf4",
    "adaquant": "adaptive",
}


def _checks() -> Any:
    # Not above: a trainer that runs a filter has no use for recipes.
    from firesteel.recipe import _fields

    return _fields


class _Placed(abc.ABC):
    """What every filter has: where it is."""

    # Ways that it goes when a recipe does not say which.
    directions: ClassVar[tuple[str, ...]] = (RESULT,)
    _sites: tuple[str, ...] | None = None

    def at(self, *sites: str) -> Any:
        """The same filter, at these sites alone.

        >>> Quantize("nf4").at("site-1", "site-3")
        Quantize('nf4').at('site-1', 'site-3')
        """
        if not sites:
            raise SpecError("`at` names no site", field="filters")
        placed = copy.copy(self)
        placed._sites = tuple(_checks().name("filters.at", site) for site in sites)
        return placed

    @abc.abstractmethod
    def _json(self) -> dict[str, Any]:
        """What it does, as the job spec has it."""

    def to_json(self) -> dict[str, Any]:
        """The filter as the job spec has it."""
        sites = None if self._sites is None else list(self._sites)
        return {"filter": self._json(), "sites": sites}

    def _show(self, *words: Any, **named: Any) -> str:
        shown = [repr(word) for word in words]
        shown += [f"{key}={value!r}" for key, value in named.items() if value]
        sites = f".at({', '.join(map(repr, self._sites))})" if self._sites else ""
        return f"{type(self).__name__}({', '.join(shown)}){sites}"


class Quantize(_Placed):
    """Floats travel in fewer bits; training and aggregation keep their precision.

    Works on float16, bfloat16, float32 and float64. Other tensors, and those that
    would not get smaller, travel as they are. Values that are NaN or infinite are
    refused at the sender, by the tensor's name.

    >>> Quantize("int8", exclude="embed")
    Quantize('int8', exclude=['embed'])

    Args:
        scheme: `fp16` (clamped to ±65504), `bf16`, `int8` (bitsandbytes' dynamic
            map in blocks of 4096), `fp4`, `nf4` (bitsandbytes, blocks of 64), or
            `adaptive` (as many levels as a tensor's range needs).
        include: regular expressions of tensor names; all tensors when left out.
        exclude: those that travel as they are.
        error_feedback: add what was lost to what is sent the next time.
        stochastic: round up or down by chance, so that the mean is right.
    """

    directions: ClassVar[tuple[str, ...]] = (TASK_DATA, RESULT)

    def __init__(
        self,
        scheme: str = "fp16",
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        error_feedback: bool = False,
        stochastic: bool = False,
    ) -> None:
        former = _FORMER.get(scheme.lower()) if isinstance(scheme, str) else None
        self.scheme = former or _checks().choice("Quantize.scheme", scheme, SCHEMES)
        self.include = _patterns("Quantize.include", include)
        self.exclude = _patterns("Quantize.exclude", exclude)
        self.error_feedback = _checks().truth("Quantize.error_feedback", error_feedback)
        self.stochastic = _checks().truth("Quantize.stochastic", stochastic)

    def _json(self) -> dict[str, Any]:
        return {
            "kind": "quantize",
            "scheme": self.scheme,
            "include": self.include,
            "exclude": self.exclude,
            "error_feedback": self.error_feedback,
            "stochastic": self.stochastic,
        }

    def __repr__(self) -> str:
        return self._show(
            self.scheme,
            include=self.include,
            exclude=self.exclude,
            error_feedback=self.error_feedback,
            stochastic=self.stochastic,
        )


class TopK(_Placed):
    """The largest values of a difference travel, and no others.

    Needs `params_transfer_type="DIFF"`.

    >>> TopK(0.01)
    TopK(0.01, error_feedback=True)

    Args:
        share: the share of a tensor's values that travel, above 0 and at most 1.
        include: as in `Quantize`.
        exclude: as in `Quantize`.
        error_feedback: add what did not travel to what is sent the next time.
            Without it most values never would.
    """

    def __init__(
        self,
        share: float,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        error_feedback: bool = True,
    ) -> None:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise _checks().refuse("TopK.share", share, "a share above 0 and at most 1")
        self.share = float(share)
        self.include = _patterns("TopK.include", include)
        self.exclude = _patterns("TopK.exclude", exclude)
        self.error_feedback = _checks().truth("TopK.error_feedback", error_feedback)

    def _json(self) -> dict[str, Any]:
        return {
            "kind": "top_k",
            "share": self.share,
            "include": self.include,
            "exclude": self.exclude,
            "error_feedback": self.error_feedback,
        }

    def __repr__(self) -> str:
        return self._show(
            self.share,
            include=self.include,
            exclude=self.exclude,
            error_feedback=self.error_feedback,
        )


class Compress(_Placed):
    """Bytes travel compressed by zstd, without loss.

    Weights hardly get smaller, differences and what `Quantize("adaptive")` or
    `TopK` leave of them do.

    >>> Compress()
    Compress(3)

    Args:
        level: 1, fast, to 19, small.
        include: as in `Quantize`.
        exclude: as in `Quantize`.
    """

    directions: ClassVar[tuple[str, ...]] = (TASK_DATA, RESULT)

    def __init__(
        self, level: int = 3, *, include: Patterns = None, exclude: Patterns = None
    ) -> None:
        self.level = _checks().whole("Compress.level", level, least=1)
        if self.level > 19:
            raise _checks().refuse("Compress.level", level, "1 to 19")
        self.include = _patterns("Compress.include", include)
        self.exclude = _patterns("Compress.exclude", exclude)

    def _json(self) -> dict[str, Any]:
        return {
            "kind": "compress",
            "level": self.level,
            "include": self.include,
            "exclude": self.exclude,
        }

    def __repr__(self) -> str:
        return self._show(self.level, include=self.include, exclude=self.exclude)


class ExcludeVars(_Placed):
    """These tensors do not leave the site: the server keeps its own.

    >>> ExcludeVars("bn", "^head")
    ExcludeVars('bn', '^head')

    Args:
        patterns: regular expressions of tensor names.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = _some(self, patterns)

    def _json(self) -> dict[str, Any]:
        return {"kind": "exclude_vars", "patterns": self.patterns}

    def __repr__(self) -> str:
        return self._show(*self.patterns)


class KeepVars(_Placed):
    """Only these tensors leave the site: the server keeps its own of the others.

    >>> KeepVars("lora_")
    KeepVars('lora_')

    Args:
        patterns: regular expressions of tensor names.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = _some(self, patterns)

    def _json(self) -> dict[str, Any]:
        return {"kind": "keep_vars", "patterns": self.patterns}

    def __repr__(self) -> str:
        return self._show(*self.patterns)


class OnlyKind(_Placed):
    """Updates of another kind do not leave the site: the task fails there.

    >>> OnlyKind("DIFF")
    OnlyKind('DIFF')

    Args:
        kind: `FULL` or `DIFF`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = _checks().choice("OnlyKind.kind", kind, ("FULL", "DIFF"))

    def _json(self) -> dict[str, Any]:
        return {"kind": "only_kind", "transfer": self.kind}

    def __repr__(self) -> str:
        return self._show(self.kind)


class FilterContext(NamedTuple):
    """What a filter of your own is told.

    Attributes:
        direction: `task_data` on the way in, `result` on the way out.
        site: the site's name.
        job_id: the job.
        round: the round, from zero.
        total_rounds: how many there are.
    """

    direction: str
    site: str
    job_id: str
    round: int
    total_rounds: int | None


class Filter(_Placed):
    """A filter of your own. It runs in the trainer's process: on the way out before
    all built-in filters, on the way in after them.

    Derive from it in a module beside the training script, and give the recipe an
    instance. The arguments of its constructor travel as JSON; at the site the class
    is made anew with them, once per process.

    >>> class Scale(Filter):
    ...     def __init__(self, factor: float) -> None:
    ...         self.factor = factor
    ...
    ...     def process(self, model, context):
    ...         for array in model.params.values():
    ...             array *= self.factor
    ...         return model
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if "process" in cls.__abstractmethods__:
            raise SpecError(
                f"{cls.__name__} has no method `process`",
                hint="define process(self, model, context), which returns a model",
                field="filters",
            )
        made = super().__new__(cls)
        init = cls.__init__
        if init is not object.__init__:
            try:
                bound = inspect.signature(init).bind(made, *args, **kwargs)
            except TypeError:
                # The constructor itself says what is wrong.
                return made
            named = dict(list(bound.arguments.items())[1:])
            for name, parameter in inspect.signature(init).parameters.items():
                if parameter.kind is parameter.VAR_POSITIONAL and named.get(name):
                    raise SpecError(
                        f"{cls.__name__} takes *{name}, but a filter's arguments travel by name",
                        hint="take a list instead",
                        field="filters",
                    )
                if parameter.kind is parameter.VAR_KEYWORD:
                    named.update(named.pop(name, {}))
            made._arguments = named
        else:
            made._arguments = {}
        return made

    @abc.abstractmethod
    def process(self, model: FLModel, context: FilterContext) -> FLModel:
        """The model as it is to go on: the same one, changed, or another.

        Args:
            model: on the way in what `flare.receive` would return, on the way out
                what is sent: with `params_transfer_type="DIFF"` the difference.
            context: where and when.
        """

    def _json(self) -> dict[str, Any]:
        kind = type(self)
        module, file = _module_of(kind)
        try:
            arguments = json.loads(json.dumps(self._arguments, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"the arguments of {kind.__name__} cannot travel: {error}",
                hint="use texts, numbers, lists and dicts",
                field="filters",
            ) from None
        return {
            "kind": "python",
            "module": module,
            "file": file,
            "class": kind.__qualname__,
            "args": arguments,
        }

    def __repr__(self) -> str:
        return self._show(**getattr(self, "_arguments", {}))


def _module_of(kind: type) -> tuple[str, str | None]:
    """The module of a class, and its file when it lies in no installed package."""
    name = kind.__module__
    if name == "__main__" or "<locals>" in kind.__qualname__:
        raise SpecError(
            f"the filter {kind.__name__} is defined in the job's own script or in a function, "
            "which a trainer does not run",
            hint="move the class into a module of its own, beside the training script",
            field="filters",
        )
    file = getattr(sys.modules.get(name), "__file__", None)
    packaged = "." in name or file is None or "site-packages" in file
    return name, None if packaged else os.path.abspath(str(file))


def _patterns(field: str, given: Patterns) -> list[str]:
    import re

    if given is None:
        return []
    listed = [given] if isinstance(given, str) else list(given)
    for pattern in listed:
        try:
            re.compile(_checks().text(field, pattern, expected="a regular expression"))
        except re.error as error:
            raise _checks().refuse(field, pattern, f"a regular expression ({error})") from None
    return listed


def _some(kind: _Placed, patterns: tuple[str, ...]) -> list[str]:
    name = type(kind).__name__
    if not patterns:
        raise SpecError(f"{name} names no tensors", hint=f'{name}("bn"), say', field="filters")
    return _patterns(name, patterns)


def to_spec(given: Any, transfer: str) -> dict[str, list[dict[str, Any]]]:
    """The filters of a recipe as the job spec has them.

    Args:
        given: a list, or a dict of lists by direction.
        transfer: `FULL` or `DIFF`, what the sites send.
    """
    if given is None:
        return {}
    if isinstance(given, dict):
        _checks().known_keys("filters", given, (TASK_DATA, RESULT))
        by_direction: Mapping[str, Any] = given
    else:
        listed = _listed("filters", given)
        by_direction = {
            direction: [placed for placed in listed if direction in placed.directions]
            for direction in (TASK_DATA, RESULT)
        }
    spec = {}
    for direction, some in by_direction.items():
        field = f"filters[{direction!r}]"
        placed = _listed(field, some)
        for one in placed:
            whole = RESULT in one.directions and TASK_DATA not in one.directions
            if direction == TASK_DATA and whole and not isinstance(one, Filter):
                raise SpecError(
                    f"`{field}` has {one!r}, which works on results alone",
                    hint="give it under 'result'",
                    field="filters",
                )
            if isinstance(one, TopK) and transfer == "FULL":
                raise SpecError(
                    f"`{field}` has {one!r}, which keeps the largest values of a difference, "
                    "but the sites send FULL",
                    hint='add params_transfer_type="DIFF"',
                    field="filters",
                )
        # A trainer's own come first on the way out and last on the way in.
        own: list[_Placed] = [one for one in placed if isinstance(one, Filter)]
        built_in = [one for one in placed if not isinstance(one, Filter)]
        ordered = own + built_in if direction == RESULT else built_in + own
        if placed != ordered and isinstance(given, dict):
            first = next(one for one in placed if isinstance(one, Filter))
            raise SpecError(
                f"`{field}` has {first!r} on the wrong side of built-in filters: it runs in the "
                "trainer",
                hint="put filters of your own first in 'result' and last in 'task_data'",
                field="filters",
            )
        spec[direction] = [one.to_json() for one in ordered]
    return spec


def _listed(field: str, given: Any) -> list[_Placed]:
    listed = [given] if isinstance(given, _Placed) else given
    if not isinstance(listed, (list, tuple)):
        raise _checks().refuse(field, given, "a list of filters", 'filters=[Quantize("fp16")], say')
    for one in listed:
        if not isinstance(one, _Placed):
            hint = "give an instance" if isinstance(one, type) else 'Quantize("fp16"), say'
            raise _checks().refuse(field, one, "a filter", hint)
    return list(listed)
