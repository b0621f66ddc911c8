"""Write the pages that the code already holds: `hooks.md` from `pumice.hookspecs`, `strategies.md` from the registry.

The docstrings and knobs are the manual; the pages only set them in type. `make docs` runs this first, and a test fails
where a committed page is not what this would write.
"""

import inspect
import re
import typing
from pathlib import Path

import pumice.testing
from pumice import hookspecs
from pumice.knobs import Knob
from pumice.registry import BASES, STRATEGY_HOOKS, registry
from pumice.steps import STEPS
from pumice.strategy import Strategy

FOLDER = Path(__file__).resolve().parent

HOOKS = """# Hooks

<!-- Written by docs/pages.py from pumice/hookspecs.py: edit the docstrings there. -->

{manual}

The plugin API has version {version}. A complete plugin is on the page [Write a plugin](write-a-plugin.md).
"""

STRATEGIES = """# Strategies and their knobs

<!-- Written by docs/pages.py from the registry: edit the knobs where they are declared. -->

Everything that this repository installs. In a recipe a strategy is its name, or a table of its name and knobs:
`quantizer = {{ name = "{example}" }}`. `pumice plugins` prints what is installed on your machine.
"""


def hooks_page() -> str:
    """Every hook: its docstring, and what a class that it yields must write."""
    manual = inspect.cleandoc(str(hookspecs.__doc__)).partition("\n")[2]
    hooks = {name: member for name, member in vars(hookspecs).items() if name.startswith("pumice_")}
    providers = {name: hook for name, hook in hooks.items() if not inspect.signature(hook).parameters}
    parts = [HOOKS.format(manual=_fenced(manual).strip(), version=hookspecs.API_VERSION)]
    parts += ["## Providers\n", *(_hook(name, hook) for name, hook in providers.items())]
    parts += ["## Notices\n", *(_hook(name, hook) for name, hook in hooks.items() if name not in providers)]
    return "\n".join(parts)


def strategies_page() -> str:
    """Every strategy and every knob, by kind."""
    found = registry()
    parts = [STRATEGIES.format(example=next(iter(found.strategies("quantizer")), "int8"))]
    parts += ["## Steps of a recipe\n", *map(_strategy, STEPS.values())]
    for kind in BASES:
        if installed := found.strategies(kind):
            parts += [f"## {kind.replace('-', ' ').capitalize()}s\n", *map(_strategy, installed.values())]
    return "\n".join(parts)


def _hook(name: str, hook: object) -> str:
    prose, _, example = (inspect.getdoc(hook) or "").partition("Example:\n")
    arguments = ", ".join(inspect.signature(hook).parameters)
    code = ["```python", inspect.cleandoc(example), "```\n"]
    contract = [_contract(STRATEGY_HOOKS[name])] if name in STRATEGY_HOOKS else []
    return "\n".join([f"### `{name}({arguments})`\n", _fields(prose), *code, *contract])


def _fields(prose: str) -> str:
    """`When:` and its siblings as a list, continued lines joined."""
    prose = re.sub(r"\n {2,}", " ", prose)
    return re.sub(r"^(When|Return|Arguments):", r"- **\1:**", prose, flags=re.MULTILINE)


def _contract(base: type[Strategy]) -> str:
    """The methods that a subclass of `base` writes, with their contracts."""
    lines = [f"A subclass of `{base.__name__}` writes:\n"]
    for name, member in vars(base).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            signature = str(inspect.signature(member)).replace("'", "")
            lines += [f"```python\ndef {name}{signature}\n```\n", _fenced(inspect.getdoc(member) or ""), ""]
    return "\n".join([*lines, f"Its tests inherit `pumice.testing.{_contract_tests(base)}`.\n"])


def _contract_tests(base: type[Strategy]) -> str:
    """Name of the contract that a subclass of `base` is held to."""
    contracts = {name: getattr(pumice.testing, name) for name in pumice.testing.__all__}
    return next(
        name for name, held in contracts.items() if base in typing.get_args(getattr(held, "__orig_bases__", [None])[0])
    )


def _strategy(strategy: type[Strategy]) -> str:
    knobs = list(strategy.knobs().values())
    needs = sorted(need.value for need in strategy.needs)
    lines = [f"### `{strategy.name}`\n", strategy.summary() + (f" Needs {', '.join(needs)}." if needs else ""), ""]
    if knobs:
        lines += ["| knob | default | values | what it does |", "|---|---|---|---|", *map(_row, knobs), ""]
    return "\n".join(lines)


def _row(knob: Knob) -> str:
    default = (
        "" if knob.default is None else f"`{list(knob.default) if isinstance(knob.default, tuple) else knob.default}`"
    )
    values = str(knob.domain).replace("|", "\\|")
    return f"| `{knob.name}` | {default} | {values} | {knob.help} |"


def _fenced(text: str) -> str:
    """Indented blocks as fenced ones, `Raises:` and its siblings as paragraphs."""
    text = re.sub(r"^(Raises|Args|Returns):\n", r"\1:\n\n", text, flags=re.MULTILINE)
    pattern = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
    return pattern.sub(lambda block: f"```text\n{inspect.cleandoc(block.group())}\n```\n", text)


PAGES = {"hooks.md": hooks_page, "strategies.md": strategies_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page())
