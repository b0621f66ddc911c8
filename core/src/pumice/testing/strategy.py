"""What every strategy owes, whatever its kind: a name, a summary, knobs that explain and defend themselves."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import attrs

from pumice.errors import KnobError, PumiceError
from pumice.knobs import Choice, Flag, Float, Int, Knob
from pumice.registry import BASES, registry
from pumice.strategy import Strategy

S = TypeVar("S", bound=Strategy)


def refusal(action: Any, *arguments: Any, **named: Any) -> PumiceError:
    """The `PumiceError` that calling `action` raises; fails if it raises none."""
    try:
        action(*arguments, **named)
    except PumiceError as error:
        assert str(error).strip(), "a refusal must be a sentence: what, where, remedy"
        return error
    raise AssertionError("this must be refused with a PumiceError")


class StrategyContract(Generic[S]):
    """Inherited by the contract of every kind."""

    strategy: type[S]
    """The class under test."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """The knobs to test it with, as a recipe would give them."""

    def make(self) -> S:
        """The configured strategy."""
        return self.strategy.configure(registry().resolve(self.strategy, self.settings))

    def test_it_is_what_an_installed_plugin_provides(self) -> None:
        kind, name = self.strategy.kind, self.strategy.name
        assert registry().get(BASES[kind], name) is self.strategy, f"the registry has another {kind} '{name}'"

    def test_it_says_in_one_line_what_it_does(self) -> None:
        assert self.strategy.summary(), "give the class, or its module, a docstring: its first line is the summary"

    def test_every_knob_explains_itself(self) -> None:
        for knob in self.strategy.knobs().values():
            assert knob.help, f"knob '{knob.name}' has no help text"
            assert str(knob.domain), f"the domain of knob '{knob.name}' prints nothing"

    def test_the_defaults_are_valid(self) -> None:
        assert self.strategy.configure({}) == self.strategy()

    def test_every_knob_takes_the_ends_of_its_domain(self) -> None:
        for knob in self.strategy.knobs().values():
            for value in _samples(knob):
                made = self.strategy.configure({knob.name: value})
                assert getattr(made, knob.name) == value

    def test_a_knob_survives_the_command_line(self) -> None:
        for knob in self.strategy.knobs().values():
            for value in _samples(knob):
                assert knob.parse(str(value)) == value, f"'{value}' of knob '{knob.name}' does not read back"

    def test_its_settings_read_back_to_itself(self) -> None:
        made = self.make()
        assert self.strategy.configure(registry().resolve(self.strategy, made.settings())) == made

    def test_a_knob_that_does_not_exist_is_refused(self) -> None:
        assert isinstance(refusal(self.strategy.configure, {"no_such_knob": 1}), KnobError)

    def test_it_is_frozen(self) -> None:
        made = self.make()
        for name in [*self.strategy.knobs(), "something_new"]:
            try:
                setattr(made, name, None)
            except attrs.exceptions.FrozenInstanceError:
                continue
            raise AssertionError(f"'{name}' could be set: decorate the class with @attrs.frozen(kw_only=True)")


def _samples(knob: Knob) -> Iterator[Any]:
    """Values at the edges of a domain; nothing for free text and nested strategies."""
    match knob.domain:
        case Choice(options=options):
            yield from options
        case Int(low=low, high=high) | Float(low=low, high=high):
            yield from (low, high)
        case Flag():
            yield from (True, False)
