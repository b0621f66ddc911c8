"""Recipes: an ordered list of steps, written as TOML or in Python.

    [[step]]
    use = "quantize"
    max_drop = 0.01
    quantizer = { name = "int8", calibrator = "entropy" }

Every key of a step is one of its knobs, every key of `quantizer` one of that quantizer's; what is unknown is refused
with the nearest known name. A recipe written by `to_toml` and read again is equal to itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from pumice.errors import KnobError, PluginError, RecipeError, nearest
from pumice.registry import registry
from pumice.steps import STEPS, Step
from pumice.toml import parse_table


def _in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(steps)


@attrs.frozen
class Recipe:
    """Steps in the order in which they run."""

    steps: tuple[Step, ...] = attrs.field(converter=_in_order)

    @classmethod
    def default(cls) -> Recipe:
        """What runs when nobody says anything: INT8 quantization with the defaults of the installed quantizer."""
        return cls.from_dict({"step": [{"use": "quantize"}]})

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """A recipe from a TOML file."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(f"cannot read the recipe '{path}': {reason}; give the path of a TOML file") from None
        return cls.from_toml(text, where=f"recipe '{path}'")

    @classmethod
    def from_toml(cls, text: str, where: str = "recipe") -> Recipe:
        try:
            table = parse_table(text)
        except ValueError as error:
            raise RecipeError(f"{where} is not valid TOML: {error}") from None
        return cls.from_dict(table, where)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from the structure that its TOML has.

        Raises:
            RecipeError: an unknown key, step, strategy or knob, or a value outside its domain; says which step.
        """
        for key in table:
            if key != "step":
                raise RecipeError(f"{where} has the unknown key '{key}'{nearest(key, ['step'])}")
        steps = table.get("step")
        if not isinstance(steps, list) or not steps:
            raise RecipeError(f'{where} has no [[step]]: add at least one, e.g. [[step]] with use = "quantize"')
        found = cls([_step(entry, f"{where}, step {number}") for number, entry in enumerate(steps, 1)])
        found.check_order(where)
        return found

    def check_order(self, where: str = "recipe") -> None:
        """Refuse an order of steps that cannot work.

        Raises:
            RecipeError: says which step cannot come after which, and why.
        """
        for number, step in enumerate(self.steps):
            for later in self.steps[number + 1 :]:
                if later.name in step.ends:
                    reason = step.ends[later.name]
                    raise RecipeError(f"{where}: '{later.name}' cannot come after '{step.name}': {reason}")

    def resolved(self) -> Recipe:
        """The recipe with every strategy that was left open filled in with the installed default."""
        return Recipe([step.resolved() for step in self.steps])

    def to_dict(self) -> dict[str, Any]:
        return {"step": [{"use": step.name, **step.settings()} for step in self.steps]}

    def write(self, path: Path, heading: str = "") -> None:
        """Write the TOML to a file, whole or not at all; a heading is one line of comment above it.

        Raises:
            RecipeError: it cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            comment = f"# {' '.join(heading.splitlines())}\n\n" if heading else ""
            temporary.write_text(comment + self.to_toml(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RecipeError(f"cannot write the recipe '{path}': {error.strerror}; choose another place") from None

    def to_toml(self) -> str:
        """TOML that reads back to an equal recipe; every knob is written out."""
        blocks = []
        for entry in self.to_dict()["step"]:
            lines = [f"{key} = {_toml(value)}" for key, value in entry.items() if value is not None]
            blocks.append("\n".join(["[[step]]", *lines]))
        return "\n\n".join(blocks) + "\n"


def _step(entry: Any, where: str) -> Step:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("use"), str):
        raise RecipeError(f'{where} does not say which step it is: add use = "..."{nearest("", STEPS)}')
    name = entry["use"]
    if name not in STEPS:
        raise RecipeError(f"{where}: there is no step '{name}'{nearest(name, STEPS)}")
    try:
        values = {key: value for key, value in entry.items() if key != "use"}
        return STEPS[name].configure(registry().resolve(STEPS[name], values))
    except (KnobError, PluginError) as error:
        raise RecipeError(f"{where}: {error}") from None


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None) + " }"
    return repr(value)
