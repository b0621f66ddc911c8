"""`pumice batch`: many models into one folder, with one table; one that fails does not stop the rest.

A list is a TOML file of `[[model]]` tables with `model` and optionally `data`, `test`, `recipe`, `output`; or a CSV
with these columns. Paths in a list are relative to the list.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import click

from pumice.cli.compress import run, run_options
from pumice.cli.console import Console, cannot_write, duration, output_options, plain
from pumice.cli.knobs import KnobCommand, recipe_from
from pumice.errors import PumiceError, nearest
from pumice.report import report_files
from pumice.toml import parse_table

SUMMARY = Path("summary.json")
_KEYS = ("model", "data", "test", "recipe", "output")


@attrs.frozen(kw_only=True)
class Job:
    """One model to compress. `output` is relative to the output folder."""

    model: Path
    data: Path | None = None
    test: Path | None = None
    recipe: Path | None = None
    output: Path


@click.command("batch", cls=KnobCommand)
@click.argument("models", nargs=-1, required=True)
@run_options
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the models, reports and summary.json.",
)
@click.option("--report/--no-report", default=True, show_default=True, help="Write a report beside every model.")
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    data: Path | None,
    test: Path | None,
    recipe: Path | None,
    output: Path,
    report: bool,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> int:
    """Compress many models; one that fails does not stop the rest.

    MODELS are ONNX files, patterns ('models/*.onnx'), folders, or lists (.toml, .csv) with a data set for each model.

    \b
    pumice batch models/ --data samples/ -o small/
    pumice batch fleet.toml -o small/ --calibrator entropy

    Exit code 1 says that at least one model failed; summary.json says which and why.
    """
    from pumice.recipe import Recipe

    console = Console(as_json=as_json, quiet=quiet, log=log)
    chosen = recipe_from(ctx, recipe)
    jobs = distinct(jobs_from(models, data, test), with_reports=report)
    _make_folder(output)
    rows = []
    for number, job in enumerate(jobs, 1):
        console.tell(f"[{number}/{len(jobs)}] {job.model}")
        target = output / job.output
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            page = target.with_suffix(".html") if report else None
            own = chosen if job.recipe is None else Recipe.read(job.recipe)
            result, files = run(
                console,
                job.model,
                own,
                target,
                report=page,
                sources={"the recipe": job.recipe or recipe},
                data=job.data,
                test=job.test,
                **options,
            )
        except (PumiceError, OSError) as error:
            console.tell(f"pumice: {error}")
            rows.append({"model": str(job.model), "ok": False, "error": str(error)})
        else:
            console.tell(result.headline())
            account = {"headline": result.headline(), "measurements": result.measurements.to_json()}
            seconds = sum(result.seconds.values())
            rows.append(
                {"model": str(job.model), "ok": True, "files": list(map(str, files)), "seconds": seconds, **account}
            )
    return _finish(console, output, rows)


def jobs_from(models: Iterable[str], data: Path | None, test: Path | None) -> list[Job]:
    """The jobs that the arguments name, in order.

    Raises:
        PumiceError: a pattern, folder or list that names nothing, or a list that cannot be read.
    """
    jobs: list[Job] = []
    for text in models:
        path = Path(text)
        if path.suffix.lower() in (".toml", ".csv"):
            jobs += _listed(path, data, test)
        else:
            jobs += [Job(model=m, data=data, test=test, output=Path(m.name)) for m in _matching(text)]
    return jobs


def distinct(jobs: list[Job], *, with_reports: bool = True) -> list[Job]:
    """The jobs with different outputs: models of one name in different folders get the folder's name in front.

    Raises:
        PumiceError: two models, or a model and the summary, would share a file all the same.
    """
    taken = {SUMMARY}
    found = []
    for job in jobs:
        output = job.output
        if taken & _written(output, with_reports):
            output = Path(job.model.absolute().parent.name) / output
        if taken & _written(output, with_reports):
            raise PumiceError(
                f"two models would be written to '{output}', beside it or over the summary; list them in a TOML file "
                "with an `output` each"
            )
        taken |= _written(output, with_reports)
        found.append(attrs.evolve(job, output=output))
    return found


def _written(output: Path, with_report: bool) -> set[Path]:
    """The files of one job, inside the output folder."""
    return {output, *(report_files(output.with_suffix(".html")) if with_report else ())}


def _matching(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if not found:
            raise PumiceError(f"there is no .onnx file in the folder '{path}'")
        return found
    if path.exists() or not glob.has_magic(text):
        return [path]
    found = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise PumiceError(f"no file matches the pattern '{text}'")
    return found


def _listed(path: Path, data: Path | None, test: Path | None) -> list[Job]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _toml_rows(text, path) if path.suffix.lower() == ".toml" else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise PumiceError(f"cannot read the list of models '{path}': {error}; correct it there") from None
    if not rows:
        raise PumiceError(
            f"the list '{path}' names no model: add [[model]] tables (TOML) or rows under the header (CSV)"
        )
    return [_job(row, f"'{path}', entry {number}", path.parent, data, test) for number, row in enumerate(rows, 1)]


def _toml_rows(text: str, path: Path) -> list[Any]:
    table = parse_table(text)
    for key in table:
        if key != "model":
            raise PumiceError(f"the list '{path}' has the unknown key '{key}'{nearest(key, ['model'])}")
    rows = table.get("model", [])
    return rows if isinstance(rows, list) else [rows]


def _job(row: Any, where: str, base: Path, data: Path | None, test: Path | None) -> Job:
    if not isinstance(row, dict):
        raise PumiceError(f"{where} must be a [[model]] table with the keys {', '.join(_KEYS)}")
    for key, value in row.items():
        if key is None:
            raise PumiceError(f"{where} has more cells than the header: correct the row")
        if key not in _KEYS:
            raise PumiceError(f"{where} has the unknown key '{key}'{nearest(str(key), _KEYS)}")
        if not isinstance(value, str | None):
            raise PumiceError(f"{where}: '{key}' must be a path in quotes, not {value!r}")
        if value and "\0" in value:
            raise PumiceError(f"{where}: '{key}' holds a zero byte, which no path can: correct it")
    if not row.get("model"):
        raise PumiceError(f"{where} does not name a model: add the key 'model'")
    paths = {key: base / row[key] for key in ("model", "data", "test", "recipe") if row.get(key)}
    output = Path(row.get("output") or Path(row["model"]).name)
    if output.is_absolute() or ".." in output.parts:
        raise PumiceError(f"{where}: 'output' is a path inside the output folder, not '{output}'")
    return Job(**{"data": data, "test": test, **paths, "output": output})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _finish(console: Console, folder: Path, rows: list[dict[str, Any]]) -> int:
    from rich.markup import escape
    from rich.table import Table

    failed = [row for row in rows if not row["ok"]]
    summary = {"models": len(rows), "failed": len(failed), "results": rows}
    path = folder / SUMMARY
    try:
        path.write_text(json.dumps(summary, indent=2, default=plain, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None
    table = Table("model", "outcome", "took")
    for row in rows:
        outcome = escape(row["headline"]) if row["ok"] else f"[red]failed:[/red] {escape(row['error'])}"
        table.add_row(escape(row["model"]), outcome, duration(row["seconds"]) if row["ok"] else "")
    console.show(table)
    console.answer(f"{len(rows) - len(failed)} of {len(rows)} models compressed; wrote {path}", summary)
    return 1 if failed else 0
