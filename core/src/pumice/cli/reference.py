"""The command-line reference (docs/cli.md), made from the commands themselves.

    PUMICE_PLUGINS= python -m pumice.cli.reference > docs/cli.md

It is the reference of core: flags that come from the knobs of installed quantizers differ from machine to machine and
are listed by `pumice compress --help` and `pumice plugins`.
"""

from __future__ import annotations

import re

import click

from pumice.cli.application import COMMANDS, application

WIDTH = 100

HEAD = """# Command line

This page is made from the commands (`python -m pumice.cli.reference`); a test holds it current. Flags that come from
the knobs of installed quantizers are added to `compress` and `batch` at run time: `pumice compress --help` lists them,
`pumice plugins` says which quantizer has which.

- Standard output carries the answer: text, or with `--json` one JSON document and nothing else. Progress, warnings and
  errors go to standard error. `--quiet` silences all but errors; `--log FILE` appends what happens, with the time.
- Progress bars appear on a terminal for whatever lasts over a second; elsewhere a plain line every few seconds.
- Knob flags and `--recipe` are refused together: a recipe says everything itself.
- Outputs are checked before the work begins and written to a temporary name first: a run that fails or is killed leaves
  the old file whole.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | finished, but some of it failed: a model of a batch, a check of the doctor |
| 2 | bad input or an output that cannot be written: one sentence on standard error says what, where and what to do |
| 130 | interrupted (143: terminated; 141: the reader of the output went away) |

Any other way to end is a defect of pumice, and shows its traceback.
"""


def reference() -> str:
    """The whole page."""
    sections = (f"## pumice {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS)
    return "\n".join([HEAD, *sections])


def help_of(name: str) -> str:
    """What `pumice NAME --help` prints at a fixed width."""
    names = application.context_settings["help_option_names"]
    root = click.Context(application, info_name="pumice", terminal_width=WIDTH, help_option_names=names)
    command = application.get_command(root, name)
    assert command is not None
    with click.Context(command, info_name=name, parent=root, terminal_width=WIDTH) as context:
        text = command.get_help(context)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
