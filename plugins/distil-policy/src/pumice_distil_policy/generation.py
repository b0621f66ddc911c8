"""Generation by a causal language model, one position at a time, with a cache of keys and values.

A model that maps tokens (N, T) to scores (N, T, C) is *causal* if the scores of a position depend on no later token.
Then most of it works position by position, and only two products of an attention mix positions:

    scores  q (.., T, d) k (.., d, T)          read  softmax(scores) (.., T, T) v (.., T, d)

Two runs on sequences of different lengths tell which axis of every value is time. To go one position on, the steps of
the plan run on slices of length one; the second operands of those products are appended to what earlier positions left;
and what does not depend on the tokens (places, masks) is cut out of a run of full length: the row of this position, and
of what has two axes of time the columns up to it. Nothing is assumed about names or layout: a decoder is compared with
the whole model when it is made, and a model that it cannot follow is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import ModelError
from pumice.plan import Plan
from pumice.program import ABSENT, Step, compute

Array = NDArray[Any]
Axes = dict[int, tuple[int, ...]]
"""By slot, the axes that are time."""
TOLERANCE = 1e-3


@attrs.frozen(eq=False)
class Samples:
    """Sequences that a language model has continued by itself."""

    tokens: Array
    """(N, length), whole numbers."""
    prompt: int
    """How many of each were given."""
    log_student: Array
    """(N, length - prompt): logarithm of the probability that the student gave to every token drawn."""
    log_drawn: Array
    """The same of the mixture of student and teacher that it was drawn from."""


@attrs.frozen(eq=False)
class Decoder:
    """A plan prepared to generate. Holds nothing of a run: several generations may share one."""

    plan: Plan
    tokens: str
    """The input that takes token numbers."""
    length: int
    """Longest sequence."""
    axes: Axes
    active: frozenset[int]
    """Slots that depend on the tokens."""

    @classmethod
    def of(cls, plan: Plan, length: int, values: Mapping[str, Array] | None = None) -> Decoder:
        """
        Args:
            plan: a model with one input, of token numbers (N, T), whose first output are scores (N, T, C).
            length: the longest sequence that will be generated.
            values: of initializers, where they are not those of the plan.

        Raises:
            ModelError: the model mixes positions in a way that cannot be followed, or is not causal.
        """
        if len(plan.inputs) != 1 or length < 3:
            raise ModelError("generation needs a model with one input, of tokens (N, T), and three positions at least")
        name = plan.inputs[0].name
        free = attrs.evolve(plan, inputs=(attrs.evolve(plan.inputs[0], shape=None),))
        decoder = cls(free, name, length, _time_axes(free, name, length), frozenset(_active(free)))
        decoder._prove(values or {})
        return decoder

    def start(self, values: Mapping[str, Array] | None = None) -> Generation:
        """A generation with these values of the initializers; it begins at position 0."""
        tables = _tables(self, values or {})
        template = list(self.plan.program.template)
        for name, value in (values or {}).items():
            if name in self.plan.initializers:
                template[self.plan.initializers[name]] = value
        return Generation(self, template, tables)

    def _prove(self, values: Mapping[str, Array]) -> None:
        """Compare with the whole model."""
        draws = np.random.default_rng(0)
        tokens = draws.integers(0, 2, (2, self.length)).astype(self.plan.inputs[0].dtype or np.int64)
        whole = next(iter(self.plan.run({self.tokens: tokens, **_known(self.plan, values)}).values()))
        generation = self.start(values)
        for position in range(self.length):
            found = generation.step(tokens[:, position])
            wrong = np.abs(found - whole[:, position]).max()
            if not wrong <= TOLERANCE * (1 + np.abs(whole).max()):
                raise ModelError(
                    f"the model cannot generate with a cache: its scores at position {position + 1} are others when "
                    f"it is run position by position, so it is not causal, or mixes positions other than by attention"
                )


@attrs.define(eq=False)
class Generation:
    """Sequences under way: one call a position."""

    decoder: Decoder
    template: list[Any]
    tables: Mapping[int, Array]
    """What does not depend on the tokens, at full length."""
    position: int = 0
    _past: dict[int, Array] = attrs.field(factory=dict)
    """By the number of the step, its second operand so far, in a buffer of full length."""

    def step(self, tokens: Array) -> Array:
        """The scores (N, C) after one more token for each sequence, (N,).

        Raises:
            ModelError: the model cannot be run on a single position.
        """
        plan, decoder = self.decoder.plan, self.decoder
        slots = list(self.template)
        slots[plan.program.inputs[0]] = tokens[:, None]
        with np.errstate(all="ignore"):
            for number, step in enumerate(plan.steps):
                if all(slot in self.tables for slot in step.outputs if slot != ABSENT):
                    for slot in step.outputs:
                        slots[slot] = self._row(slot)
                    continue
                if _is_product_over_time(step, decoder):
                    slots[step.inputs[1]] = self._extended(number, slots[step.inputs[1]], step.inputs[1])
                for slot, value in zip(step.outputs, compute(step, slots), strict=False):
                    if slot != ABSENT:
                        slots[slot] = value
        self.position += 1
        scores: Array = slots[plan.program.outputs[0]]
        return scores[:, 0]

    def _row(self, slot: int) -> Array:
        found = self.tables[slot]
        axes = self.decoder.axes.get(slot, ())
        for number, axis in enumerate(axes):
            first = self.position if number == 0 else 0
            found = found[(slice(None),) * axis + (slice(first, self.position + 1),)]
        return found

    def _extended(self, number: int, fresh: Array, slot: int) -> Array:
        """A second operand with what earlier positions left in front."""
        (axis,) = self.decoder.axes[slot]
        if number not in self._past:
            shape = list(fresh.shape)
            shape[axis] = self.decoder.length
            self._past[number] = np.zeros(shape, fresh.dtype)
        here = (slice(None),) * axis
        self._past[number][(*here, slice(self.position, self.position + 1))] = fresh
        return self._past[number][(*here, slice(0, self.position + 1))]


def _is_product_over_time(step: Step, decoder: Decoder) -> bool:
    """Whether the second operand holds all positions: keys, or values."""
    return (
        step.node.op_type == "MatMul"
        and all(slot in decoder.active for slot in step.inputs)
        and len(decoder.axes.get(step.inputs[1], ())) == 1
    )


def _active(plan: Plan) -> set[int]:
    found = {plan.program.inputs[0]}
    for step in plan.steps:
        if step.node.op_type not in {"Shape", "Size"} and found.intersection(step.inputs):
            found.update(slot for slot in step.outputs if slot != ABSENT)
    return found


def _time_axes(plan: Plan, name: str, length: int) -> Axes:
    """The axes whose sizes change with the length of the sequence."""
    kind = plan.inputs[0].dtype or np.int64
    longer, shorter = (_values(plan, {name: np.zeros((1, n), kind)}, None) for n in (length, length - 1))
    found = {}
    for slot, value in longer.items():
        pairs = enumerate(zip(value.shape, shorter[slot].shape, strict=True))
        found[slot] = tuple(axis for axis, (long, short) in pairs if long != short)
    return {slot: axes for slot, axes in found.items() if axes}


def _tables(decoder: Decoder, values: Mapping[str, Array]) -> dict[int, Array]:
    """What varies with the length but does not depend on the tokens, at full length."""
    wanted = {slot for slot in decoder.axes if slot not in decoder.active}
    tokens = np.zeros((1, decoder.length), decoder.plan.inputs[0].dtype or np.int64)
    return _values(decoder.plan, {decoder.tokens: tokens, **_known(decoder.plan, values)}, wanted)


def _known(plan: Plan, values: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in values.items() if name in plan.initializers}


def _values(plan: Plan, feeds: Mapping[str, Array], wanted: set[int] | None) -> dict[int, Array]:
    """Values by slot (None: all)."""
    slots, found = list(plan.program.template), dict[int, Array]()
    for slot, value in plan.filled(feeds):
        slots[slot] = value
        if wanted is None:
            found[slot] = value
    with np.errstate(all="ignore"):
        for step in plan.steps:
            for slot, value in zip(step.outputs, compute(step, slots), strict=False):
                if slot != ABSENT:
                    slots[slot] = value
                    if (wanted is None or slot in wanted) and isinstance(value, np.ndarray):
                        found[slot] = value
            for slot in step.frees:
                slots[slot] = None
    return found


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample(
    generations: Sequence[Generation],
    shares: Sequence[float],
    prompts: Array,
    length: int,
    draws: np.random.Generator,
    temperature: float = 1.0,
) -> Samples:
    """Continue prompts (N, P) to a length, drawing from a mixture of models.

    Args:
        generations: of the models, at position 0; all for the same vocabulary.
        shares: of the models in the mixture, summing to one.
        prompts: whole numbers (N, P), P at least 1.
        length: of the sequences.
        draws: what is drawn with.
        temperature: scores are divided by it.
    """
    count, given = prompts.shape
    tokens = np.zeros((count, length), np.int64)
    tokens[:, :given] = prompts
    own, mixed = (np.zeros((count, length - given)) for _ in range(2))
    for position in range(length - 1):
        scores = [each.step(tokens[:, position]) for each in generations]
        if position + 1 < given:
            continue
        chances = [_softmax(each.astype(np.float64) / temperature) for each in scores]
        mixture = sum(share * each for share, each in zip(shares, chances, strict=True))
        assert isinstance(mixture, np.ndarray)
        drawn = (mixture.cumsum(axis=1) < draws.random((count, 1)) * mixture.sum(axis=1, keepdims=True)).sum(axis=1)
        drawn = np.minimum(drawn, mixture.shape[1] - 1)
        tokens[:, position + 1] = drawn
        rows, at = np.arange(count), position + 1 - given
        own[:, at], mixed[:, at] = np.log(chances[0][rows, drawn]), np.log(mixture[rows, drawn])
    return Samples(tokens, given, own, mixed)


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
