"""The runtime strategy and its sessions."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.cores import confined, usable_cores
from pumice.errors import ModelError, nearest
from pumice.knobs import Choice, knob
from pumice.strategy import Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
DEVICE = "CPU"
PROFILE_RUNS = 5


@attrs.frozen(kw_only=True)
class OpenVinoRuntime(Runtime):
    """OpenVINO on the CPU."""

    name = "openvino"
    rank = 10
    channel_multiple = 16  # its blocked layouts hold 16 channels
    precision: str = knob("f32", Choice("f32", "bf16", "f16"), help="in what floating-point operators compute")
    hint: str = knob("LATENCY", Choice("LATENCY", "THROUGHPUT"), help="what OpenVINO tunes itself for")

    def available(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: run `pip install openvino`"
        return None

    def open(
        self, model: ir.Model | Path | str, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> OpenVinoSession:
        """Open a model.

        Args:
            model: a model in memory, or the path of one.
            outputs: values to return, in this order; any value of the main graph. None returns the graph's outputs.
            threads: threads of one run; None leaves it to OpenVINO, unless this process may not use all cores.

        Raises:
            ModelError: OpenVINO refuses the model, or a value does not exist.
        """
        return self._open(model, outputs, threads)

    def profile(
        self, model: ir.Model | Path | str, feeds: Mapping[str, Array], *, threads: int | None = None
    ) -> list[tuple[str, str, float]]:
        """Time of every node that OpenVINO runs: (node, operator, microseconds), in the order of execution.

        Nodes and their names are OpenVINO's own, after fusion. The time is the mean of five runs after a warm-up.

        Raises:
            ModelError: as `open`, or the feeds do not fit.
        """
        session = self._open(model, None, threads, PERF_COUNT=True)
        runs = [session.timed(feeds) for _ in range(1 + PROFILE_RUNS)][1:]
        nodes = dict.fromkeys(node for run in runs for node in run)  # what takes no time is not in every run
        return [(*node, sum(run.get(node, 0.0) for run in runs) / PROFILE_RUNS) for node in nodes]

    def _open(
        self, model: ir.Model | Path | str, outputs: Sequence[str] | None, threads: int | None, **properties: Any
    ) -> OpenVinoSession:
        import openvino

        if threads is None and confined():
            threads = len(usable_cores())
        properties |= {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": self.hint}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        with _file_of(model) as (path, label), _sentences(f"OpenVINO cannot load {label}"):
            graph = openvino.Core().read_model(path)
            names = [_name(output) for output in graph.outputs] if outputs is None else list(outputs)
            _add_outputs(graph, names, label)
            compiled = openvino.compile_model(graph, DEVICE, properties)
        return OpenVinoSession(
            compiled=compiled, names=tuple(names), threads=threads, precision=self.precision, label=label
        )


@attrs.frozen(kw_only=True, eq=False)
class OpenVinoSession:
    """An open model; threads may share it."""

    compiled: Any
    names: tuple[str, ...]
    threads: int | None
    precision: str
    label: str

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All requested outputs, by name.

        Raises:
            ModelError: the feeds do not fit the inputs, or OpenVINO fails.
        """
        request = self._ran(feeds)
        return {name: request.get_tensor(name).data.copy() for name in self.names}

    def timed(self, feeds: Mapping[str, Array]) -> dict[tuple[str, str], float]:
        """Microseconds of the nodes that a run executed, by name and operator, for a session that counts them."""
        info = [i for i in self._ran(feeds).profiling_info if i.status == i.Status.EXECUTED]
        return {(i.node_name, i.node_type): i.real_time / timedelta(microseconds=1) for i in info}

    def _ran(self, feeds: Mapping[str, Array]) -> Any:
        """A request that has run; each caller has state of its own."""
        self._check(feeds)
        with _sentences(f"OpenVINO cannot run {self.label}"):
            request = self.compiled.create_infer_request()
            request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        return request

    @property
    def description(self) -> str:
        import openvino

        version = openvino.__version__.split("-", maxsplit=1)[0]
        count = self.compiled.get_property("INFERENCE_NUM_THREADS") if self.threads is None else self.threads
        return f"openvino {version}, {DEVICE}, {count} thread{'s' if count > 1 else ''}, precision {self.precision}"

    def _check(self, feeds: Mapping[str, Array]) -> None:
        import openvino

        inputs = {_name(port): port for port in self.compiled.inputs}
        for name in feeds:
            if name not in inputs:
                raise ModelError(f"{self.label} has no input '{name}'{nearest(name, inputs)}")
        for name, port in inputs.items():
            if name not in feeds:
                raise ModelError(f"{self.label}: input '{name}' is missing{nearest(name, feeds)}")
            array, wanted = np.asarray(feeds[name]), port.element_type.to_dtype()
            if array.dtype != wanted:
                raise ModelError(
                    f"{self.label}: input '{name}' is {array.dtype} and must be {wanted}: convert the data"
                )
            if not port.partial_shape.compatible(openvino.PartialShape(list(array.shape))):
                raise ModelError(
                    f"{self.label}: input '{name}' has shape {list(array.shape)} and must have "
                    f"{port.partial_shape}: make the data fit the model"
                )


@contextmanager
def _file_of(model: ir.Model | Path | str) -> Iterator[tuple[Path, str]]:
    """The model as a file, and how errors call it."""
    if isinstance(model, str | Path):
        if not Path(model).is_file():
            raise ModelError(f"there is no model file '{model}': check the path")
        yield Path(model), f"'{model}'"
        return
    from pumice.model import save

    with tempfile.TemporaryDirectory(prefix="pumice-") as folder:
        path = Path(folder, "model.onnx")
        save(model, path)
        yield path, f"model '{model.graph.name}'" if model.graph.name else "the model"


def _add_outputs(graph: Any, names: Sequence[str], label: str) -> None:
    known = {name for node in graph.get_ops() for port in node.outputs() for name in port.get_names()}
    for name in names:
        if name not in known:
            raise ModelError(f"{label} has no value '{name}'{nearest(name, known)}")
    present = {name for port in graph.outputs for name in port.get_names()}
    graph.add_outputs([name for name in names if name not in present])


def _name(port: Any) -> str:
    return str(port.get_any_name())


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turn OpenVINO's errors, which come with source positions, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in said if not line.startswith(("Exception from", "Check '"))]
        raise ModelError(f"{what}: {(told or said or ['no reason given'])[-1].rstrip('. ')[:400]}") from error
