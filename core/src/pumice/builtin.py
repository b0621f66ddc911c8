"""Core's own strategies. They come in by the same door as a stranger's: an entry point and hooks, nothing else."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pumice.hookspecs import hookimpl
from pumice.strategy import DatasetReader, Metric, Runtime

if TYPE_CHECKING:
    from pumice.ops import Op


@hookimpl
def pumice_ops() -> "Iterator[Op]":
    from pumice.ops import core_ops

    yield from core_ops()


@hookimpl
def pumice_metrics() -> Iterator[type[Metric]]:
    from pumice.measure.metrics import BUILTIN_METRICS

    yield from BUILTIN_METRICS


@hookimpl
def pumice_datasets() -> Iterator[type[DatasetReader]]:
    from pumice.data.readers import BUILTIN_READERS

    yield from BUILTIN_READERS


@hookimpl
def pumice_runtimes() -> Iterator[type[Runtime]]:
    from pumice.measure.plan_runtime import PlanRuntime, ReferenceRuntime
    from pumice.quantize.simulated_runtime import SimulatedRuntime

    yield ReferenceRuntime
    yield PlanRuntime
    yield SimulatedRuntime
