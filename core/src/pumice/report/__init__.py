"""The report: the whole account of a run as one HTML page that needs nothing else, and the same as JSON beside it.

The page loads nothing from anywhere (its content security policy forbids it): style, script and charts are inside.
Everything that comes from a model (names of nodes may hold any text) is escaped. The same result gives the same page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pumice.pipeline import Result


def write_report(result: Result, path: Path) -> Path:
    """Write the page to `path` and the JSON beside it (same name, suffix `.json`), each whole or not at all.

    Raises:
        OSError: a file cannot be written; what was there before is unchanged.
    """
    from pumice.report.page import render

    page = path if path.suffix.lower() in {".html", ".htm"} else path.with_name(f"{path.name}.html")
    account = json.dumps(result.to_json(), indent=1, allow_nan=False, default=_plain) + "\n"
    _write(page.with_suffix(".json"), account)
    _write(page, render(result))
    return page


def _plain(value: object) -> object:
    """NumPy numbers and arrays, the only things in an account that JSON lacks."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _write(path: Path, text: str) -> None:
    """To a temporary name first, so that a killed run leaves the old file whole."""
    import os
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
