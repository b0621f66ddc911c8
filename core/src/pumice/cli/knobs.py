"""Command-line flags from knobs: a knob is declared once, in its strategy, and becomes a flag here.

The flags are those of the `quantize` step and, together, those of every installed quantizer: `max_drop` of the step is
`--max-drop`, `calibrator` of the quantizer int8 is `--calibrator`. Which of them apply is decided by `--quantizer`; a
flag that the chosen quantizer does not have is refused, with the nearest that it has. A quantizer's knob that bears the
name of another option is `--<quantizer>-<knob>`.

Flags describe a recipe of one step, so they are refused together with `--recipe`, which says everything itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from pumice.errors import KnobError, PumiceError
from pumice.knobs import Flag, Knob, Names, Several, Use
from pumice.recipe import Recipe
from pumice.registry import registry
from pumice.steps import Quantize, default_quantizer
from pumice.strategy import Quantizer

_STEP = "step"
_OPTIONS, _GIVEN = f"{__name__}.options", f"{__name__}.given"


class KnobOption(click.Option):
    """A flag that stands for a knob of the step or of one or more quantizers."""

    def __init__(self, flag: str, knob: str, owners: Mapping[str, Knob]) -> None:
        self.knob, self.owners = knob, owners
        one = next(iter(owners.values()))
        super().__init__(
            [flag, _parameter(flag)],
            metavar="LIST" if isinstance(one.domain, Names) else "VALUE",
            help=_help(owners),
            multiple=isinstance(one.domain, Names | Several),
            default=None,
        )

    def value(self, owner: str, given: Any) -> Any:
        """The knob's value for the text (or texts) given on the command line; construction checks it."""
        knob = self.owners[owner]
        if isinstance(knob.domain, Names):
            return tuple(part for text in given for part in knob.parse(text))
        return knob.parse(given)


class KnobCommand(click.Command):
    """A command to which the flags of all installed knobs are added when it is first parsed or shown."""

    def knob_options(self, ctx: click.Context) -> list[KnobOption]:
        if _OPTIONS not in ctx.meta:
            ctx.meta[_OPTIONS] = knob_options(taken={name for param in self.params for name in param.opts})
        found: list[KnobOption] = ctx.meta[_OPTIONS]
        return found

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self.knob_options(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [
            record
            for param in super().get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx))
        ]
        with formatter.section("Options"):
            formatter.write_dl(own)
        for title, wanted in (("Quantization", True), ("Of the quantizers", False)):
            found = [o.get_help_record(ctx) for o in self.knob_options(ctx) if (_STEP in o.owners) is wanted]
            if found:
                with formatter.section(title):
                    formatter.write_dl([record for record in found if record])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; the knob flags are taken out of the parameters and kept in `ctx.meta`."""
        rest = super().parse_args(ctx, args)
        given = {}
        for option in self.knob_options(ctx):
            value = ctx.params.pop(str(option.name), None)
            if value not in (None, ()):
                given[option] = value
        ctx.meta[_GIVEN] = given
        return rest


def knob_options(taken: Iterable[str]) -> list[KnobOption]:
    """One option per knob of the step, then one per name among the knobs of all quantizers."""
    options = {
        f"--{_dashed(name)}": KnobOption(f"--{_dashed(name)}", name, {_STEP: k}) for name, k in Quantize.knobs().items()
    }
    used = {*taken, *options}
    owners: dict[str, tuple[str, dict[str, Knob]]] = {}
    for quantizer, strategy in registry().strategies("quantizer").items():
        for name, knob in strategy.knobs().items():
            flag = f"--{_dashed(name)}"
            if flag in used or _differs_in_form(knob, owners.get(flag)):
                flag = f"--{quantizer}-{_dashed(name)}"
            owners.setdefault(flag, (name, {}))[1][quantizer] = knob
    return [*options.values(), *(KnobOption(flag, name, found) for flag, (name, found) in sorted(owners.items()))]


def recipe_from(ctx: click.Context, path: Any) -> Recipe:
    """The recipe that the command line describes: the file, or the flags, or the default.

    Raises:
        KnobError: flags together with a file, a flag that the quantizer lacks, a value outside its domain.
    """
    given: Mapping[KnobOption, Any] = ctx.meta.get(_GIVEN, {})
    if path is not None:
        if given:
            flags = ", ".join(option.opts[0] for option in given)
            raise KnobError(f"--recipe says everything itself: write {flags} into '{path}', or leave --recipe out")
        return Recipe.read(path)
    step: dict[str, Any] = {o.knob: o.value(_STEP, text) for o, text in given.items() if _STEP in o.owners}
    chosen = step.pop("quantizer", None)
    name = chosen if chosen is not None else _default_quantizer_name(given)
    if name is not None:
        step["quantizer"] = _quantizer(name, {o: text for o, text in given.items() if _STEP not in o.owners})
    return Recipe([Quantize.configure(step)])  # mypy does not see through the converter


def _quantizer(name: str, given: Mapping[KnobOption, Any]) -> Quantizer:
    strategy = registry().get(Quantizer, name)
    values = {}
    for option, text in given.items():
        values[option.knob] = option.value(name, text) if name in option.owners else text
    return strategy.configure(values)


def _default_quantizer_name(given: Iterable[KnobOption]) -> str | None:
    """The default quantizer is named only where flags of a quantizer need one."""
    if all(_STEP in option.owners for option in given):
        return None
    if not registry().strategies("quantizer"):
        raise PumiceError("no quantizer is installed: pip install pumice-quant-int8")
    return default_quantizer().name


def _differs_in_form(knob: Knob, other: tuple[str, dict[str, Knob]] | None) -> bool:
    """Two knobs share a flag only if both are lists or neither is."""
    return other is not None and any(
        isinstance(k.domain, Names) != isinstance(knob.domain, Names) for k in other[1].values()
    )


def _help(owners: Mapping[str, Knob]) -> str:
    """`text [domain; default x]`, once per distinct declaration, with the quantizers that share it."""
    groups: dict[str, list[str]] = {}
    for owner, knob in owners.items():
        groups.setdefault(f"{knob.help} [{knob.domain}; default {shown_default(knob)}]", []).append(owner)
    return "; ".join(text if _STEP in names else f"{', '.join(names)}: {text}" for text, names in groups.items())


def shown_default(knob: Knob) -> str:
    """A knob's default as a person would type it."""
    if isinstance(knob.domain, Use):
        return "chosen"
    if isinstance(knob.domain, Flag):
        return str(knob.default).lower()
    if isinstance(knob.domain, Names):
        return ",".join(knob.default) or "none"
    return str(knob.default) or "empty"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _parameter(flag: str) -> str:
    """A parameter name that no option of a command can have."""
    return f"knob_{flag.removeprefix('--').replace('-', '_')}"
