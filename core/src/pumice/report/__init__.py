"""The report: the whole account of a run as one HTML page that needs nothing else, and the same as JSON beside it.

The page loads nothing from anywhere (its content security policy forbids it): style, script and charts are inside.
Everything that comes from a model (names of nodes may hold any text) is escaped. The same result gives the same page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.errors import PumiceError

if TYPE_CHECKING:
    from pumice.pipeline import Result
    from pumice.search import Found


def write_report(result: Result, path: Path, search: Found | None = None) -> Path:
    """Write the page to `path` and the JSON beside it (same name, suffix `.json`), both whole or not at all.

    Where a search found the recipe, `search` is told as well.

    Raises:
        PumiceError: a file cannot be written; what was there before is unchanged.
    """
    from pumice.report.page import render

    told = result.to_json() | ({} if search is None else {"search": search.to_json()})
    return _written(path, render(result, search), told)


def write_search(search: Found, model: str, path: Path) -> Path:
    """The same for a search that found no recipe, so that there is no result to account for.

    Raises:
        PumiceError: as for `write_report`.
    """
    from pumice.report.page import render_search

    return _written(path, render_search(search, model), {"model": model, "search": search.to_json()})


def _written(path: Path, text: str, told: Mapping[str, object]) -> Path:
    page, account = report_files(path)
    texts = {account: json.dumps(told, indent=1, allow_nan=False, default=_plain) + "\n", page: text}
    write_texts(texts, f"the report '{page}'")
    return page


def write_texts(texts: Mapping[Path, str], what: str) -> None:
    """Write files, all whole or none at all.

    Raises:
        PumiceError: one cannot be written, and `what` is therefore lacking; what was there before is unchanged.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for target, text in texts.items():
            temporaries[target] = _temporary(target, text)
        for target, temporary in temporaries.items():
            temporary.replace(target)
    except OSError as error:
        raise PumiceError(
            f"{what} cannot be written ({error.strerror or error}): choose a writable folder with enough space"
        ) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def report_files(path: Path) -> tuple[Path, Path]:
    """Where the page and the JSON of a report lie that was asked for at `path`."""
    page = path if path.suffix.lower() in {".html", ".htm"} else path.with_name(f"{path.name}.html")
    return page, page.with_suffix(".json")


def _plain(value: object) -> object:
    """NumPy numbers and arrays, the only things in an account that JSON lacks."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _temporary(target: Path, text: str) -> Path:
    """A file with the text, beside the one whose place it will take."""
    import os
    import tempfile

    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)
