"""Every hook of pumice: the plugin author's manual.

A plugin is a module named by an entry point of the group `pumice`:

    [project.entry-points.pumice]
    prune-fpgm = "pumice_prune_fpgm"

and implements any of the functions below with `pumice.hookimpl`. There are two kinds. *Providers* are collecting hooks:
pumice calls each once, when the registry is built, and keeps the frozen records it yields; they must be cheap (no heavy
import, no file read). *Notices* tell what happened while a run goes on; what they return is ignored.

Arguments that an implementation does not need may be left out of its signature. A plugin that raises (at import, in the
call or while being iterated) costs one warning and is left out; `pumice doctor` shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from pumice.strategy import (
    Command,
    DatasetReader,
    Exporter,
    ImportanceScorer,
    Loss,
    Metric,
    Quantizer,
    Runtime,
    Searcher,
    Sparsifier,
)

if TYPE_CHECKING:
    from pumice.ops import Kernel, Op

API_VERSION = 1
"""Raised when a hook or a base class changes incompatibly. A plugin may state `PUMICE_API = 1` in its module."""

hookspec = pluggy.HookspecMarker("pumice")
hookimpl = pluggy.HookimplMarker("pumice")


# --- providers --------------------------------------------------------------------------------------------------------


@hookspec
def pumice_ops() -> Iterable[Op]:  # type: ignore[empty-body]
    """Operators, or parts of them (a gradient, a cost model, a channel rule).

    When: once, when the registry is built.
    Return: `pumice.ops.Op` records. Records with one key are merged field by field; the same field from two
        distributions is an error naming both.
    Example:
        @hookimpl
        def pumice_ops():
            yield Op(domain="my.domain", op_type="Square", forward=lambda node, x: (x * x,))
    """


@hookspec
def pumice_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Faster implementations of operators; the highest rank that is available wins when a plan is compiled.

    When: once, when the registry is built; `Kernel.available()` is asked when a plan is compiled.
    Return: `pumice.ops.Kernel` records. NumPy has rank 0 and is the definition of truth. A kernel with `part="vjp"`
        computes the gradient of an operator.
    Example:
        @hookimpl
        def pumice_kernels():
            yield Kernel(op_type="Relu", rank=10, run=lambda node, x: (np.maximum(x, 0),))
    """


@hookspec
def pumice_importance_scorers() -> Iterable[type[ImportanceScorer]]:  # type: ignore[empty-body]
    """Criteria that say which channels matter.

    When: once, when the registry is built.
    Return: subclasses of `ImportanceScorer`.
    Example:
        @hookimpl
        def pumice_importance_scorers():
            yield Fpgm
    """


@hookspec
def pumice_sparsifiers() -> Iterable[type[Sparsifier]]:  # type: ignore[empty-body]
    """Ways to choose single weights that become zero.

    When: once, when the registry is built.
    Return: subclasses of `Sparsifier`.
    Example:
        @hookimpl
        def pumice_sparsifiers():
            yield Wanda
    """


@hookspec
def pumice_quantizers() -> Iterable[type[Quantizer]]:  # type: ignore[empty-body]
    """Ways to store and compute with fewer bits.

    When: once, when the registry is built.
    Return: subclasses of `Quantizer`.
    Example:
        @hookimpl
        def pumice_quantizers():
            yield Int8
    """


@hookspec
def pumice_losses() -> Iterable[type[Loss]]:  # type: ignore[empty-body]
    """Training and distillation objectives.

    When: once, when the registry is built.
    Return: subclasses of `Loss`.
    Example:
        @hookimpl
        def pumice_losses():
            yield CrossEntropy
    """


@hookspec
def pumice_metrics() -> Iterable[type[Metric]]:  # type: ignore[empty-body]
    """Scores of model outputs, sample by sample.

    When: once, when the registry is built.
    Return: subclasses of `Metric`.
    Example:
        @hookimpl
        def pumice_metrics():
            yield Top1
    """


@hookspec
def pumice_exporters() -> Iterable[type[Exporter]]:  # type: ignore[empty-body]
    """Forms in which a compressed model is written.

    When: once, when the registry is built.
    Return: subclasses of `Exporter`.
    Example:
        @hookimpl
        def pumice_exporters():
            yield Qdq
    """


@hookspec
def pumice_runtimes() -> Iterable[type[Runtime]]:  # type: ignore[empty-body]
    """Engines that execute models.

    When: once, when the registry is built; `Runtime.available()` is asked when a runtime is wanted.
    Return: subclasses of `Runtime`.
    Example:
        @hookimpl
        def pumice_runtimes():
            yield OnnxRuntime
    """


@hookspec
def pumice_searchers() -> Iterable[type[Searcher]]:  # type: ignore[empty-body]
    """Strategies that propose which recipe to try next.

    When: once, when the registry is built.
    Return: subclasses of `Searcher`.
    Example:
        @hookimpl
        def pumice_searchers():
            yield Greedy
    """


@hookspec
def pumice_datasets() -> Iterable[type[DatasetReader]]:  # type: ignore[empty-body]
    """Readers for forms of data on disk.

    When: once, when the registry is built; `DatasetReader.recognises(path)` is asked when `--data` is opened.
    Return: subclasses of `DatasetReader`.
    Example:
        @hookimpl
        def pumice_datasets():
            yield ParquetReader
    """


@hookspec
def pumice_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Commands added to the `pumice` command line.

    When: once, when the registry is built; `Command.load()` is called only when the command is used.
    Return: `pumice.Command` records.
    Example:
        @hookimpl
        def pumice_commands():
            yield Command(name="track", summary="show tracked runs", load=lambda: my_click_command)
    """


# --- notices ----------------------------------------------------------------------------------------------------------


@hookspec
def pumice_run_started(model_name: str, recipe: Any) -> None:
    """A run begins.

    When: after the recipe was validated and before its first step.
    Arguments: `model_name`, the file name or graph name; `recipe`, the `pumice.Recipe`.
    Example:
        @hookimpl
        def pumice_run_started(model_name):
            print("compressing", model_name)
    """


@hookspec
def pumice_step_finished(step: str, ledger: Any, seconds: float) -> None:
    """A step of the recipe ended well.

    When: after every step.
    Arguments: `step`, its name; `ledger`, the `pumice.Ledger` so far; `seconds`, how long the step took.
    Example:
        @hookimpl
        def pumice_step_finished(step, seconds):
            print(step, "took", seconds)
    """


@hookspec
def pumice_trial_finished(trial: Any) -> None:
    """The search measured one recipe.

    When: after every trial.
    Arguments: `trial`, the measured recipe.
    Example:
        @hookimpl
        def pumice_trial_finished(trial):
            print(trial)
    """


@hookspec
def pumice_run_finished(result: Any) -> None:
    """A run ended well.

    When: after the last step and its measurement.
    Arguments: `result`, the `pumice.Result`.
    Example:
        @hookimpl
        def pumice_run_finished(result):
            print(result.summary())
    """
