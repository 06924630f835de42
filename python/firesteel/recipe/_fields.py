"""Checks of parameters: each refusal names parameter, value, expectation, remedy."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any

from firesteel.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def refuse(field: str, value: Any, expected: str, hint: str = "") -> SpecError:
    """The error for a value that is not what was expected."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "…"
    return SpecError(f"`{field}` is {shown}, expected {expected}", hint=hint, field=field)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint, when one of the options is close."""
    import difflib

    close = difflib.get_close_matches(str(word), list(options), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def known_keys(field: str, given: Iterable[str], options: Iterable[str]) -> None:
    """Refuses keys that mean nothing."""
    names = list(options)
    for key in given:
        if key not in names:
            raise SpecError(
                f"`{field}` has the key {key!r}, expected one of {', '.join(names)}",
                hint=did_you_mean(key, names),
                field=field,
            )


def whole(field: str, value: Any, *, least: int) -> int:
    """A whole number of at least `least`."""
    index = getattr(value, "__index__", None)
    if isinstance(value, bool) or index is None:
        raise refuse(field, value, f"a whole number of at least {least}")
    number = int(index())
    if number < least:
        raise refuse(field, value, f"a whole number of at least {least}")
    if number > 2**32 - 1:
        raise refuse(field, value, "a whole number below 4,294,967,296")
    return number


def seconds(field: str, value: Any, *, zero: bool = False) -> float:
    """A number of seconds, or a timedelta."""
    total = getattr(value, "total_seconds", None)
    number = total() if callable(total) else value
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not math.isfinite(number)
        or number < 0
        or (number == 0 and not zero)
    ):
        raise refuse(field, value, "a positive number of seconds" if not zero else "seconds")
    return float(number)


def truth(field: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise refuse(field, value, "True or False")
    return value


def text(field: str, value: Any, *, expected: str = "a text") -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise refuse(field, value, expected)
    return value


def choice(field: str, value: Any, options: Sequence[str], *, fold: bool = True) -> str:
    """One of some words, or an enumeration's member that stands for one."""
    word = value.value if isinstance(value, Enum) else value
    if isinstance(word, str):
        for option in options:
            if word == option or (fold and word.lower() == option.lower()):
                return option
    quoted = ", ".join(map(repr, options))
    hint = did_you_mean(word, options) if isinstance(word, str) else ""
    raise refuse(field, value, f"one of {quoted}", hint)


def words(field: str, value: Any) -> list[str]:
    """A command line's words, from one text as a shell splits it, or from a list."""
    if value is None:
        return []
    if isinstance(value, str):
        import shlex

        try:
            return shlex.split(value)
        except ValueError as problem:
            raise refuse(field, value, f"words as a shell reads them ({problem})") from None
    if isinstance(value, (list, tuple)):
        return [str(word) for word in value]
    raise refuse(field, value, "a text or a list of words", 'for example "--epochs 2 --lr 0.01"')


def mapping(field: str, value: Any, expected: str) -> Mapping[Any, Any]:
    """A dict with string keys."""
    if not isinstance(value, dict) or any(not isinstance(key, str) for key in value):
        raise refuse(field, value, expected)
    return value


def weight(field: str, value: Any) -> float:
    """A finite number over zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(field, value, "a positive number")
    if not math.isfinite(value) or value <= 0:
        raise refuse(field, value, "a positive number")
    return float(value)


def name(field: str, value: Any) -> str:
    """A name that can stand in a path, a log line and a command."""
    given = text(field, value, expected="a name")
    plain = given.replace("-", "").replace("_", "").replace(".", "")
    if not (given.isascii() and given[0].isalnum() and (plain.isalnum() or not plain)):
        raise refuse(
            field, value, "letters, digits, `.`, `_` and `-`, starting with a letter or digit"
        )
    if len(given) > 63:
        raise refuse(field, value, "at most 63 characters")
    return given
