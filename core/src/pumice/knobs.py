"""Knobs: the parameters of a strategy, each declared once.

    norm: str = knob("l2", Choice("l1", "l2"), help="distance between filters")

A value outside its domain cannot be constructed: the error names the strategy, the knob, the value and the domain. A
domain knows four things: `convert` a value to the plain type it stands for (a list to a tuple, a NumPy integer to an
int), `check` it, `parse` the text of a command line, and print itself. `parse(str(value))` is `value`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from pumice.errors import KnobError, nearest

if TYPE_CHECKING:
    from pumice.strategy import Strategy

T = TypeVar("T")


# --- domains: what values a knob may take -----------------------------------------------------------------------------


@attrs.frozen(init=False)
class Choice:
    """One of a few named values."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        self.__attrs_init__(tuple(options))

    def convert(self, value: Any) -> Any:
        return next((o for o in self.options if _same(o, value)), value)

    def check(self, value: Any) -> str | None:
        if any(_same(option, value) for option in self.options):
            return None
        hint = nearest(value, [str(o) for o in self.options]) if isinstance(value, str) else ""
        return f"must be one of {', '.join(map(repr, self.options))}" + (hint if hint.startswith("; did") else "")

    def parse(self, text: str) -> Any:
        return next((o for o in self.options if str(o) == text), text)

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))


@attrs.frozen
class Int:
    """A whole number in [low, high]; `log` says that the search should sample it on a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    def convert(self, value: Any) -> Any:
        return int(value) if not isinstance(value, bool) and isinstance(value, numbers.Integral) else value

    def check(self, value: Any) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        return f"must be a whole number from {self.low} to {self.high}"

    def parse(self, text: str) -> Any:
        return _number(text, int)

    def __str__(self) -> str:
        return f"{self.low} .. {self.high}"


@attrs.frozen
class Float:
    """A finite number in [low, high]; `log` as for `Int`. With `units` a text is taken as well, e.g. `5ms`."""

    low: float
    high: float
    log: bool = False
    units: tuple[tuple[str, float], ...] = ()
    """Suffixes and what each multiplies by."""

    def convert(self, value: Any) -> Any:
        if isinstance(value, str) and self.units:
            return self.parse(value)
        return float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else value

    def check(self, value: Any) -> str | None:
        if isinstance(value, float) and math.isfinite(value) and self.low <= value <= self.high:
            return None
        units = f", alone or with {' or '.join(unit for unit, _ in self.units)} behind it" if self.units else ""
        return f"must be a number from {self.low:g} to {self.high:g}{units}"

    def parse(self, text: str) -> Any:
        for unit, factor in self.units:
            number = _number(text.removesuffix(unit).strip(), float) if text.endswith(unit) else text
            if isinstance(number, float):
                return number * factor
        return _number(text, float)

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}"


@attrs.frozen
class Flag:
    """True or false."""

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "must be true or false"

    def parse(self, text: str) -> Any:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)

    def __str__(self) -> str:
        return "true | false"


@attrs.frozen
class Text:
    """Free text, e.g. a node-name pattern. The search leaves it alone."""

    pattern: str = ""
    """What kind of text is meant, for the documentation."""

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, str) else "must be text"

    def parse(self, text: str) -> Any:
        return text

    def __str__(self) -> str:
        return self.pattern or "text"


@attrs.frozen
class Names:
    """A tuple of glob patterns over node names, e.g. `["head/*"]`. The search leaves it alone."""

    def convert(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any) -> str | None:
        ok = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        return None if ok else "must be a list of texts"

    def parse(self, text: str) -> Any:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def __str__(self) -> str:
        return "list of patterns"


@attrs.frozen
class Use:
    """Another strategy of the given kind, e.g. the quantizer of the `quantize` step."""

    kind: str

    def convert(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        if getattr(type(value), "kind", None) == self.kind:
            return None
        return f"must be a {self.kind}"

    def parse(self, text: str) -> Any:
        return text

    def __str__(self) -> str:
        return f"a {self.kind}"


@attrs.frozen
class Several(Use):
    """Any number of strategies of the given kind, e.g. the losses of the `distil` step."""

    def convert(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any) -> str | None:
        ok = isinstance(value, tuple) and all(super(Several, self).check(each) is None for each in value)
        return None if ok else f"must be a list, each a {self.kind}"

    def __str__(self) -> str:
        return f"list, each a {self.kind}"


Domain = Choice | Int | Float | Flag | Text | Names | Use


def _same(option: Any, value: Any) -> bool:
    """Equality that does not take True for 1, nor an array for a scalar."""
    scalar = (str, int, float, type(None))
    return isinstance(value, scalar) and isinstance(option, bool) == isinstance(value, bool) and option == value


def _number(text: str, cast: Callable[[str], Any]) -> Any:
    try:
        return cast(text)
    except ValueError:
        return text


# --- knobs ------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Knob:
    """The whole declaration of one parameter of a strategy."""

    name: str
    default: Any
    domain: Domain
    help: str
    when: Callable[[Any], bool] | None = None
    """Tells whether the knob matters for an instance; the search does not vary it where it does not."""
    search: Domain | bool | None = None
    """As for `knob`."""

    def searched(self, owner: type[Strategy]) -> Domain | None:
        """The domain that a search varies the knob over, None if it leaves it alone."""
        if self.search is None and (owner.kind == "step" or isinstance(self.domain, Text | Names | Use)):
            return None
        if self.search is None and isinstance(self.domain, Int | Float):
            return _around(self.default, self.domain)
        if self.search is None or self.search is True:
            return self.domain
        return self.search or None

    def parse(self, text: str) -> Any:
        """The value that a command-line text stands for (still unchecked: construction checks)."""
        return self.domain.parse(text)


REACH = 10
"""How many times larger or smaller than its default a number may be in a search."""


def _around(default: float, domain: Int | Float) -> Int | Float | None:
    """What is worth trying of a domain that only says what is legal.

    A domain that reaches beyond `REACH` times the default is cut there, and then every factor is as likely. Around zero
    there is no scale to go by: a wide domain is left alone.
    """
    if default <= 0:
        return domain if domain.high - domain.low <= REACH else None
    least, most = default / REACH, default * REACH
    if domain.high <= most and not 0 < domain.low < least:
        return domain
    low, high = max(domain.low, least), min(domain.high, most)
    return Int(math.ceil(low), math.floor(high), log=True) if isinstance(domain, Int) else Float(low, high, log=True)


def knob(
    default: T,
    domain: Domain | None = None,
    *,
    help: str,
    when: Callable[[Any], bool] | None = None,
    search: Domain | bool | None = None,
) -> T:
    """Declare a parameter of a strategy. `domain` may be left out for a bool (`Flag`) or a tuple of names (`Names`).

    `search` says what an automatic search may try: everything the domain allows (True), a narrower domain of values
    that are worth trying, or only the default (False). Left open it is False for a step's knobs and for free text,
    lists and other strategies; else it is True, but numbers stay within a tenth and ten times of their default.
    """
    if domain is None:
        domain = Flag() if isinstance(default, bool) else Names() if isinstance(default, tuple) else None
    if domain is None:
        raise TypeError("knob() needs a domain (Choice, Int, Float, Flag, Text, Names or Use) for this default")
    if not help.strip():
        raise TypeError("knob() needs a help text: it is what every user of the knob reads")
    complaint = None if isinstance(domain, Use) else domain.check(domain.convert(default))
    if complaint:
        raise TypeError(f"knob() default {default!r} is outside its own domain: it {complaint}")

    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        wrong = None if isinstance(domain, Use) and value is None else domain.check(value)
        if wrong:
            raise KnobError(f"{instance.kind} '{instance.name}': knob '{attribute.name}' = {value!r} {wrong}")

    return attrs.field(
        default=default,
        validator=validate,
        converter=domain.convert,
        metadata={"pumice.knob": (domain, help, when, search)},
    )
