"""Knobs: what each domain lets in, what it says of the rest, and how a value survives being written and read."""

import math

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from pumice.errors import KnobError
from pumice.knobs import Choice, Flag, Float, Int, Knob, Names, Text, Use, knob
from pumice.strategy import Loss, Need, Strategy


@attrs.frozen(kw_only=True)
class Sample(Strategy):
    """One knob of every domain.

    And a second paragraph.
    """

    kind = "thing"
    name = "sample"
    needs = frozenset({Need.LABELS})
    scheme: str = knob("affine", Choice("affine", "symmetric"), help="how zero is placed")
    bits: int = knob(8, Int(2, 8), help="bits a value")
    rate: float = knob(1e-3, Float(1e-6, 1.0, log=True), help="learning rate")
    per_channel: bool = knob(True, help="one scale a channel")
    note: str = knob("", Text(), help="free text")
    exclude: tuple[str, ...] = knob((), help="nodes to leave alone")
    inner: Loss = knob(None, Use("loss"), help="another strategy")


@attrs.frozen(kw_only=True)
class Hard(Loss):
    name = "hard"


@attrs.frozen(kw_only=True)
class Other(Strategy):
    kind = "other"
    name = "other"


REFUSED = [
    ("scheme", "afine", "must be one of 'affine', 'symmetric'; did you mean 'affine'?"),
    ("scheme", None, "must be one of 'affine', 'symmetric'"),
    ("scheme", np.array(["affine"]), "must be one of"),
    ("bits", 9, "must be a whole number from 2 to 8"),
    ("bits", 8.0, "must be a whole number from 2 to 8"),
    ("bits", "8", "must be a whole number from 2 to 8"),
    ("bits", True, "must be a whole number from 2 to 8"),
    ("rate", 1.5, "must be a number from 1e-06 to 1"),
    ("rate", math.nan, "must be a number from"),
    ("rate", math.inf, "must be a number from"),
    ("rate", "fast", "must be a number from"),
    ("per_channel", 1, "must be true or false"),
    ("note", 3, "must be text"),
    ("exclude", "head/*", "must be a list of texts"),
    ("exclude", (1,), "must be a list of texts"),
    ("exclude", 7, "must be a list of texts"),
    ("inner", "hard", "must be a loss"),
    ("inner", Other(), "must be a loss"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), REFUSED, ids=[f"{n}={v!r:.12}" for n, v, _ in REFUSED])
def test_a_value_outside_its_domain_cannot_be_constructed(name, value, sentence):
    with pytest.raises(KnobError) as caught:
        Sample.configure({name: value})
    assert str(caught.value).startswith(f"thing 'sample': knob '{name}' = {value!r} {sentence}")


def test_values_are_kept_in_their_plain_type():
    made = Sample(bits=np.int64(4), rate=1, exclude=["head/*"])
    assert [type(v) for v in (made.bits, made.rate, made.exclude)] == [int, float, tuple]


def test_a_number_with_a_unit_may_be_given_as_a_text_anywhere():
    domain = Float(0.0, 10.0, units=(("ms", 1.0), ("s", 1e3)))
    assert [domain.convert(value) for value in ("5ms", "0.002 s", 5)] == [5.0, 2.0, 5.0]
    assert domain.check(domain.convert("5 apples")) is not None
    assert Float(0.0, 10.0).check(Float(0.0, 10.0).convert("5")) is not None


def test_a_choice_keeps_its_own_option_and_does_not_take_true_for_one():
    domain = Choice(1, 0.5)
    assert domain.check(True) is not None
    assert type(domain.convert(1.0)) is int


def test_a_misspelt_knob_names_the_nearest():
    with pytest.raises(KnobError, match=r"thing 'sample' has no knob 'perchannel'; did you mean 'per_channel'\?"):
        Sample.configure({"perchannel": True})


def test_settings_read_back_to_the_same_strategy():
    made = Sample(bits=4, exclude=("a", "b"), inner=Hard())
    said = made.settings()
    assert said["inner"] == {"name": "hard"}
    assert said["exclude"] == ["a", "b"]
    assert Sample.configure({**said, "inner": Hard()}) == made


def test_knobs_keep_their_order_and_their_whole_declaration():
    knobs = Sample.knobs()
    assert list(knobs) == ["scheme", "bits", "rate", "per_channel", "note", "exclude", "inner"]
    assert knobs["per_channel"].domain == Flag()
    assert knobs["exclude"].domain == Names()
    assert (knobs["bits"].default, knobs["bits"].help) == (8, "bits a value")


def test_a_subclass_inherits_the_knobs():
    @attrs.frozen(kw_only=True)
    class More(Sample):
        name = "more"
        extra: int = knob(1, Int(0, 3), help="one more")

    assert list(More.knobs()) == [*Sample.knobs(), "extra"]
    assert More.needs == Sample.needs


def test_a_strategy_is_frozen_and_hashable():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Sample().bits = 4
    assert len({Sample(), Sample(bits=8), Sample(bits=4)}) == 2


def test_the_summary_is_the_first_line_of_the_class_or_of_its_module():
    assert Sample.summary() == "One knob of every domain."
    assert Hard.summary() == __doc__.splitlines()[0]


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: knob(9, Int(2, 8), help="bits"), "default 9 is outside its own domain"),
        (lambda: knob("x", Choice("a"), help="one"), "default 'x' is outside its own domain"),
        (lambda: knob(1, help="bits"), "needs a domain"),
        (lambda: knob(True, help=" "), "needs a help text"),
    ],
)
def test_a_wrong_declaration_fails_where_it_is_written(declare, complaint):
    with pytest.raises(TypeError, match=complaint):
        declare()


def test_a_knob_may_say_when_it_matters():
    @attrs.frozen(kw_only=True)
    class Conditional(Strategy):
        kind, name = "thing", "conditional"
        mode: str = knob("off", Choice("on", "off"), help="whether")
        strength: int = knob(1, Int(0, 9), help="how much", when=lambda made: made.mode == "on")

    matters = Conditional.knobs()["strength"].when
    assert matters(Conditional(mode="on"))
    assert not matters(Conditional())


texts = st.text(st.characters(exclude_characters=",", exclude_categories=["C", "Z"]), min_size=1)


@given(st.integers())
def test_a_whole_number_survives_the_command_line(value):
    assert Int(-(10**30), 10**30).parse(str(value)) == value


@given(st.floats(allow_nan=False))
def test_a_number_survives_the_command_line(value):
    assert Float(-math.inf, math.inf).parse(str(value)) == value


@given(st.lists(st.one_of(st.integers(), st.booleans(), texts), min_size=1, unique_by=str))
def test_a_choice_survives_the_command_line(options):
    domain = Choice(*options)
    assert [domain.parse(str(option)) for option in options] == options


@given(st.lists(texts))
def test_a_list_of_patterns_survives_the_command_line(names):
    assert Names().parse(",".join(names)) == tuple(names)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("No", False), ("1", True), ("maybe", "maybe")])
def test_a_flag_reads_the_usual_words(text, value):
    assert Flag().parse(text) == value


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(-300, 300))
def test_a_range_takes_exactly_what_lies_in_it(one, other, value):
    low, high = sorted((one, other))
    inside = low <= value <= high
    assert (Int(low, high).check(value) is None) == inside
    assert (Float(low, high).check(float(value)) is None) == inside


@given(st.text())
def test_what_cannot_be_parsed_is_refused_by_name_and_not_by_traceback(text):
    for name, declared in Sample.knobs().items():
        value = declared.parse(text)
        if declared.domain.check(declared.domain.convert(value)) is not None:
            with pytest.raises(KnobError, match=f"thing 'sample': knob '{name}' = "):
                Sample.configure({name: value})


@pytest.mark.parametrize(
    "domain", [Choice("a", "b"), Int(1, 9), Float(0.5, 2), Flag(), Text("a pattern"), Names(), Use("loss")]
)
def test_a_domain_prints_what_it_takes(domain):
    assert str(domain) in {"a | b", "1 .. 9", "0.5 .. 2", "true | false", "a pattern", "list of patterns", "a loss"}


@pytest.mark.parametrize(
    ("default", "domain", "tried"),
    [
        (64, Int(1, 1_000_000), Int(7, 640, log=True)),
        (3, Int(1, 100_000), Int(1, 30, log=True)),
        (2e-4, Float(1e-9, 1.0, log=True), Float(2e-5, 2e-3, log=True)),
        (4, Int(2, 8), Int(2, 8)),
        (0.9, Float(0.0, 0.999), Float(0.0, 0.999)),
        (0, Int(0, 1_000_000), None),
    ],
)
def test_a_search_tries_numbers_near_their_default(default, domain, tried):
    found = Knob(name="x", default=default, domain=domain, help="x").searched(Hard)
    assert found == tried or attrs.astuple(found) == pytest.approx(attrs.astuple(tried))
