"""The space of recipes: what is installed and fits this model, in every order that can work, with every knob.

Nothing is listed here. Pipelines are sequences of the steps that there are, each at most once and in an order that they
allow (`Step.ends`); a step that compresses nothing only repairs, so it stands after one that compresses. What a step
puts to work is any installed strategy of that kind that accepts the model and has what it needs, and what varies is
every knob for which `Knob.searched` gives a domain and whose `when` holds. A strategy installed a minute ago takes part
through its knobs alone.

A searcher sees the space as a *walk*: `walk(choose)` asks `choose(name, domain)` for one value after the other and
returns the proposal they lead to, so that a knob is only asked for where it matters. Names are stable (`pipeline`,
`prune.ratio`, `quantize.int8.calibrator`): what was learned about a knob in one pipeline holds in the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import KnobError
from pumice.knobs import Choice, Domain, Knob, Use
from pumice.registry import registry
from pumice.steps import STEPS, Auto, Step
from pumice.strategy import Need, Quantizer, Strategy

if TYPE_CHECKING:
    import onnx_ir as ir

Choose = Callable[[str, Domain], Any]
UNUSED = "files and latencies stay as they are, so a search has nothing to choose it by"
APART = {
    "loss": "a training takes the one that fits its labels, a distillation the teacher's outputs; recipes may differ",
    "exporter": "trials are measured as ONNX models, which the winner is written as",
}
"""Kinds of strategies that no knob of a step chooses among in a search, and why."""
LONGEST = 3
"""Steps of a pipeline at most."""


@attrs.frozen(kw_only=True)
class Proposal:
    """A point of the space, and the recipe that it is."""

    values: Mapping[str, Any]
    recipe: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class LeftOut:
    """A strategy that takes no part."""

    kind: str
    name: str
    reason: str


@attrs.frozen(kw_only=True)
class Space:
    """Every recipe that could be tried on one model."""

    pipelines: tuple[tuple[str, ...], ...]
    strategies: Mapping[str, tuple[type[Strategy], ...]]
    """Those that take part, by kind, in the order of their names."""
    fixed: Mapping[tuple[str, str], Any]
    """Knobs of steps that the search sets and searchers do not vary, by step and name."""
    goal: str = ""
    """What the search is to make small: strategies may begin elsewhere for it than at their defaults."""
    narrowed: Mapping[tuple[str, str], Domain] = attrs.field(factory=dict)
    """Domains of knobs of steps that the search varies over less than they declare."""
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of(
        cls,
        model: ir.Model,
        has: frozenset[Need],
        fixed: Mapping[tuple[str, str], Any],
        refuse: Mapping[str, str],
        narrowed: Mapping[tuple[str, str], Domain] = MappingProxyType({}),
        goal: str = "",
    ) -> Space:
        """The space for a model.

        Args:
            model: what is to be compressed.
            has: what the run can give to a strategy.
            fixed: values of knobs of steps that do not vary.
            refuse: steps that take no part, and why.
            narrowed: domains of knobs of steps that vary over less than they declare.
            goal: what the search is to make small (`Auto.goal`).
        """
        unused = {name: UNUSED for name, step in STEPS.items() if not step.searchable and step is not Auto}
        left_out = [LeftOut(kind="step", name=name, reason=reason) for name, reason in {**unused, **refuse}.items()]
        strategies: dict[str, tuple[type[Strategy], ...]] = {}
        steps = []
        for name, step in STEPS.items():
            if name in refuse or not step.searchable:
                continue
            reason = _lacks(step, has)
            for kind in _kinds(step):
                if kind not in strategies:
                    strategies[kind], others = _takers(kind, model, has)
                    left_out += others
                if not strategies[kind] and not reason:
                    reason = f"no installed {kind} can work on this model"
            if reason:
                left_out.append(LeftOut(kind="step", name=name, reason=reason))
            else:
                steps.append(name)
        apart = {kind: ", ".join(registry().strategies(kind)) for kind in APART}
        left_out += [LeftOut(kind=kind, name=names, reason=APART[kind]) for kind, names in apart.items() if names]
        pipelines = tuple(_pipelines(steps))
        return cls(
            pipelines=pipelines,
            strategies=strategies,
            fixed=fixed,
            goal=goal,
            narrowed=narrowed,
            left_out=tuple(left_out),
        )

    def walk(self, choose: Choose) -> Proposal:
        """The proposal to which the answers of `choose(name, domain)` lead."""
        values: dict[str, Any] = {}

        def ask(name: str, domain: Domain) -> Any:
            if isinstance(domain, Choice) and len(domain.options) == 1:
                return domain.options[0]
            values[name] = choose(name, domain)
            return values[name]

        shown = {" > ".join(pipeline): pipeline for pipeline in self.pipelines}
        pipeline = shown[ask("pipeline", Choice(*shown))]
        steps = [{"use": name, **self._settings(STEPS[name], name, ask)} for name in pipeline]
        return Proposal(values=values, recipe={"step": steps})

    def _settings(self, strategy: type[Strategy], path: str, ask: Choose) -> dict[str, Any]:
        """The knobs of one step or strategy that are asked for or fixed."""
        found: dict[str, Any] = {}
        for name, knob in strategy.knobs().items():
            if (strategy.name, name) in self.fixed and issubclass(strategy, Step):
                found[name] = self.fixed[strategy.name, name]
                continue
            domain = self.narrowed.get((path, name), knob.searched(strategy))
            if isinstance(domain, Use):
                found[name] = self._strategy(domain.kind, f"{path}.{name}", path, ask)
            elif domain is not None and _matters(knob, strategy, found):
                found[name] = ask(f"{path}.{name}", domain)
        return found

    def _strategy(self, kind: str, asked: str, path: str, ask: Choose) -> dict[str, Any]:
        takers = {strategy.name: strategy for strategy in self.strategies[kind]}
        name = ask(asked, Choice(*takers))
        return {"name": name, **self._settings(takers[name], f"{path}.{name}", ask)}

    def default(self, pipeline: tuple[str, ...], changed: Mapping[str, Any] | None = None) -> Proposal:
        """The recipe of a pipeline with every knob at its default but those that are `changed`, by their names.

        What is fixed for searchers may be among them.
        """
        given = {"pipeline": " > ".join(pipeline), **(changed or {})}
        anew = {(step, knob): given[f"{step}.{knob}"] for step, knob in self.fixed if f"{step}.{knob}" in given}

        def choose(name: str, domain: Domain) -> Any:
            return given[name] if name in given else self._default(name, domain)

        proposal = attrs.evolve(self, fixed={**self.fixed, **anew}).walk(choose)
        values = {f"{step}.{knob}": value for (step, knob), value in anew.items() if step in pipeline}
        return attrs.evolve(proposal, values={**proposal.values, **values})

    def alternatives(self, step: str) -> list[dict[str, str]]:
        """What a step may put to work, the undemanding first: one choice for each strategy, by the walk's names."""
        found: list[dict[str, str]] = [{}]
        for name, knob in STEPS[step].knobs().items():
            domain = knob.searched(STEPS[step])
            if isinstance(domain, Use):
                takers = sorted(self.strategies[domain.kind], key=lambda strategy: len(strategy.needs))
                found = [{**one, f"{step}.{name}": taker.name} for one in found for taker in takers]
        return found

    def choosers(self, kind: str) -> frozenset[str]:
        """The names of the strategies of a kind that stand for others, or for a choice layer by layer (`chooses`)."""
        return frozenset(taker.name for taker in self.strategies.get(kind, ()) if getattr(taker, "chooses", False))

    def _default(self, name: str, domain: Domain) -> Any:
        """The default of the knob that bears a name of the walk, if the search may choose it."""
        *path, key = name.split(".")
        owner = self._owner(path)
        default = self._begins(owner).get(key, owner.knobs()[key].default)
        if default is None and isinstance(owner.knobs()[key].domain, Use):
            resolved = getattr(owner().resolved(), key, None) if issubclass(owner, Step) else None
            default = resolved.name if resolved is not None else None
        return default if domain.check(domain.convert(default)) is None else middle(domain)

    def _begins(self, owner: type[Strategy]) -> Mapping[str, Any]:
        """The knobs that a strategy begins with for the goal, where they are not its defaults."""
        return owner.goals.get(self.goal, {}) if issubclass(owner, Quantizer) else {}

    def _owner(self, path: list[str]) -> type[Strategy]:
        """The step or strategy that a dotted path names."""
        if len(path) == 1:
            return STEPS[path[0]]
        kinds = _kinds(STEPS[path[0]])
        return next(s for kind in kinds for s in self.strategies[kind] if s.name == path[1])


def middle(domain: Domain) -> Any:
    """A value in the middle of a domain: the geometric one where it is logarithmic."""
    if isinstance(domain, Choice):
        return domain.options[0]
    low, high, log = domain.low, domain.high, domain.log  # type: ignore[union-attr]  # only numbers are left
    value = (low * high) ** 0.5 if log and low > 0 else (low + high) / 2
    return domain.convert(round(value) if isinstance(low, int) else value)


def _pipelines(steps: list[str]) -> Iterator[tuple[str, ...]]:
    """Sequences of steps that can work, the shortest first."""
    for length in range(1, LONGEST + 1):
        for sequence in itertools.permutations(steps, length):
            compresses = [STEPS[name].compresses for name in sequence]
            if not any(compresses) or not compresses[0] or (length > 1 and not _may_follow(sequence)):
                continue
            yield sequence


def _may_follow(sequence: tuple[str, ...]) -> bool:
    return all(later not in STEPS[earlier].ends for at, earlier in enumerate(sequence) for later in sequence[at + 1 :])


def _kinds(step: type[Step]) -> list[str]:
    return [domain.kind for knob in step.knobs().values() if isinstance(domain := knob.searched(step), Use)]


def _takers(kind: str, model: ir.Model, has: frozenset[Need]) -> tuple[tuple[type[Strategy], ...], list[LeftOut]]:
    """The installed strategies of a kind that can work, and why the others cannot."""
    takers, others = [], []
    for name, strategy in sorted(registry().strategies(kind).items()):
        reason = _lacks(strategy, has) or _refusal(strategy, model)
        if reason:
            others.append(LeftOut(kind=kind, name=name, reason=reason))
        else:
            takers.append(strategy)
    return tuple(takers), others


def _refusal(strategy: type[Strategy], model: ir.Model) -> str:
    try:
        return strategy().accepts(model) or ""
    except TypeError:
        return "it has a knob without a default"


def _lacks(strategy: type[Strategy], has: frozenset[Need]) -> str:
    missing = sorted(need.value for need in strategy.needs - has)
    return f"it needs {' and '.join(missing)}" if missing else ""


def _matters(knob: Knob, strategy: type[Strategy], so_far: Mapping[str, Any]) -> bool:
    """Whether the knob's `when` holds for what has been chosen so far."""
    if knob.when is None:
        return True
    plain = {name: value for name, value in so_far.items() if not isinstance(strategy.knobs()[name].domain, Use)}
    try:
        return knob.when(strategy(**plain))
    except KnobError:
        return False
