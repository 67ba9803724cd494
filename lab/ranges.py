"""The ranges of numeric arguments: the type of a field says what it may be.

All is computed in 32 bits, which bounds what has no other bound.
"""

import dataclasses
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lab.errors import UserError

MOST = 2**31 - 1  # int32
LARGE = 1e30  # float32, with room to be multiplied


@dataclass(frozen=True)
class Range:
    """The least and the most that a number may be."""

    low: float
    high: float


Seed = Annotated[int, Range(0, 2**32 - 1)]  # jax.random.key takes others modulo 2**32
Count = Annotated[int, Range(1, MOST)]
CountOrNone = Annotated[int, Range(0, MOST)]
Width = Annotated[int, Range(2, 2**16)]  # of a hidden layer, half as wide where it reads words
Share = Annotated[float, Range(0, 1)]
SomeShare = Annotated[float, Range(1e-6, 1)]
Cosine = Annotated[float, Range(-1, 0.999999)]  # above which a cosine, at most 1, counts
StepSize = Annotated[float, Range(0, 1)]  # Adam's
Weight = Annotated[float, Range(0, LARGE)]
Penalty = Annotated[float, Range(-1_000, 0)]
Positive = Annotated[float, Range(1 / LARGE, LARGE)]


def find_ranges(hint: Any) -> Iterator[tuple[type, Range | None]]:
    """Yield each int and float in a type hint (float | None, tuple[int, ...]) with its range."""
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    kind = get_args(hint)[0] if notes else hint
    if kind in (int, float):
        yield kind, next((note for note in notes if isinstance(note, Range)), None)
    else:
        for part in get_args(kind):
            yield from find_ranges(part)


@dataclass(frozen=True)
class Ranged:
    """Arguments whose numbers are checked as they are made, on the command line or in Python."""

    def __post_init__(self):
        """Raise UserError, naming the flag, for the first number out of its range."""
        hints = get_type_hints(type(self), include_extras=True)
        for name in [field.name for field in dataclasses.fields(self)]:
            given = getattr(self, name)
            given = given if isinstance(given, tuple) else (given,)
            for value, (kind, allowed) in product(given, find_ranges(hints[name])):
                if allowed and value is not None and not _fits(value, kind, allowed):
                    number = "a whole number" if kind is int else "a number"
                    bounds = f"from {allowed.low:.12g} to {allowed.high:.12g}"
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag} {value}: give {number} {bounds}")


def _fits(value: Any, kind: type, allowed: Range) -> bool:
    """Return whether a value is a number of the kind and within its range; NaN is in none."""
    is_kind = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    return is_kind and allowed.low <= value <= allowed.high
