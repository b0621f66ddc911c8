"""TOML files that people write: recipes, declarations beside data, lists of models.

One way to read them all, whatever an editor has done to the file: a byte order mark is no part of the text, and nesting
that would exhaust the parser is an error like any other.
"""

import tomllib
from pathlib import Path
from typing import Any


def read_table(path: Path) -> dict[str, Any]:
    """The table that a file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, or not TOML; the text says where.
    """
    return parse_table(path.read_text(encoding="utf-8-sig"))


def parse_table(text: str) -> dict[str, Any]:
    """The table that a text holds.

    Raises:
        ValueError: it is not TOML; the text of the error says where.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
