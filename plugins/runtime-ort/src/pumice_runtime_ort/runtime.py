"""The runtime strategy and its sessions."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.cores import confined, usable_cores
from pumice.errors import ModelError, nearest
from pumice.knobs import Choice, Int, Names, knob
from pumice.strategy import Runtime
from pumice_runtime_ort.source import ModelSource, operators, source_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

Array = NDArray[Any]
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_FATAL = 4
"""The only severity that is logged: ours are the sentences."""
_PROFILE_RUNS = 5
_BOILERPLATE = (
    r"Please fix either the inputs/outputs or the model\.",
    r"Load model from \S+ (failed:)?",
    r"Non-zero status code returned while running",
    r"Fatal error:",
)
_REMEDIES = {
    "max supported IR version": "update onnxruntime, or save the model in an older file format",
    "opset": "update onnxruntime, or export the model for an older opset",
    "is not a registered function/op": "this onnxruntime lacks the operator: export the model without it",
    "Protobuf parsing failed": "the file is damaged or no ONNX model: export it again",
    "same node name": "give every node a name of its own",
    "Failed to allocate memory": "use smaller data, or a larger machine",
    "Got:": "make the data fit the inputs of the model",
    "Unexpected input data type": "convert the data to the type of the input",
}
"""What to do, by a mark in what onnxruntime says."""


@attrs.frozen(kw_only=True)
class OrtRuntime(Runtime):
    """ONNX Runtime, on the CPU or any of its execution providers."""

    name = "ort"
    rank = 100
    channel_multiple = 8  # its blocked convolutions pad channels to the width of a vector: 8 floats, 16 with AVX-512
    providers: tuple[str, ...] = knob(
        ("CPUExecutionProvider",), Names(), help="execution providers, the preferred first; none falls back in silence"
    )
    graph_optimization: str = knob(
        "all", Choice("all", "extended", "basic", "none"), help="how far ONNX Runtime rewrites the graph when loading"
    )
    inter_op_threads: int = knob(1, Int(1, 1024), help="threads that run independent nodes at once; 1 runs in order")
    memory_arena: bool = knob(True, help="keep freed memory for the next run (faster, and more memory)")

    def available(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: run `pip install onnxruntime`"
        return None

    def open(
        self, model: ir.Model | Path | str, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> OrtSession:
        """Open a model.

        Args:
            model: a model in memory, or the path of one.
            outputs: values to return, in this order; any value of the main graph. None returns the graph's outputs.
            threads: threads of one run; None leaves it to ONNX Runtime (one a physical core), unless this process may
                not use all cores, which ONNX Runtime does not ask about: then it is one for each of those.

        Raises:
            ModelError: ONNX Runtime refuses the model, a value does not exist, or a provider did not load.
        """
        threads = _allowed(threads)
        with source_of(model, outputs) as source:
            session = self._session(source, self._options(threads))
        return OrtSession(session=session, threads=threads, level=self.graph_optimization, label=source.label)

    def optimized_ops(self, model: ir.Model | Path | str) -> Counter[str]:
        """How many nodes of each operator ONNX Runtime really runs, after its own optimisation.

        Raises:
            ModelError: as `open`.
        """
        import onnx

        options = self._options(1)
        with source_of(model, None) as source, tempfile.TemporaryDirectory(prefix="pumice-") as folder:
            written = Path(folder, "optimized.onnx")
            options.optimized_model_filepath = str(written)
            # weights of any size go beside it: only the operators are read back
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            self._session(source, options)
            return operators(onnx.load(written, load_external_data=False).graph)

    def profile(
        self, model: ir.Model | Path | str, feeds: Mapping[str, Array], *, threads: int | None = None
    ) -> list[tuple[str, str, float]]:
        """Time of every node that ONNX Runtime runs: (node, operator, microseconds), in the order of execution.

        Names of fused nodes are ONNX Runtime's own. The time is the mean of five runs after a warm-up.

        Raises:
            ModelError: as `open`, or the feeds do not fit.
        """
        threads = _allowed(threads)
        options = self._options(threads)
        options.enable_profiling = True
        with source_of(model, None) as source, tempfile.TemporaryDirectory(prefix="pumice-") as folder:
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = OrtSession(
                session=self._session(source, options),
                threads=threads,
                level=self.graph_optimization,
                label=source.label,
            )
            try:
                for _ in range(1 + _PROFILE_RUNS):
                    session.run(feeds)
            finally:
                written = session.session.end_profiling()
            events = json.loads(Path(written).read_text("utf-8"))
        return _node_times(events)

    def _options(self, threads: int | None) -> onnxruntime.SessionOptions:
        import onnxruntime as ort

        ort.set_default_logger_severity(_FATAL)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[self.graph_optimization])
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = self.inter_op_threads
        if self.inter_op_threads > 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = self.memory_arena
        options.enable_mem_pattern = self.memory_arena
        # threads that spin on after a run would steal the cores of the session measured next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _session(self, source: ModelSource, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        self._require_providers(ort.get_available_providers(), "this build of onnxruntime has")
        if source.data_folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", source.data_folder)
        with _sentences(f"onnxruntime cannot load {source.label}"):
            # without enable_fallback=0 a provider that fails, even in mid-run, is replaced by the CPU with a mere print
            session = ort.InferenceSession(source.model, options, providers=list(self.providers), enable_fallback=0)
        self._require_providers(session.get_providers(), f"onnxruntime loaded {source.label} with")
        return session

    def _require_providers(self, present: Sequence[str], who: str) -> None:
        for provider in self.providers:
            if provider not in present:
                raise ModelError(
                    f"execution provider '{provider}' did not load: {who} "
                    f"{', '.join(present)}; install what it needs, or choose another with the knob 'providers'"
                )


def _allowed(threads: int | None) -> int | None:
    """Threads of a session: one a core that we may use where ONNX Runtime would choose for the whole machine."""
    return len(usable_cores()) if threads is None and confined() else threads


@attrs.frozen(kw_only=True, eq=False)
class OrtSession:
    """An open model; threads may share it."""

    session: onnxruntime.InferenceSession
    threads: int | None
    level: str
    label: str

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All requested outputs, by name; the arrays in a sequence `s` are named `s[0]`, `s[1]`, ...

        Raises:
            ModelError: an input is missing or unknown, does not fit, or a node fails on it.
        """
        names = [value.name for value in self.session.get_outputs()]
        self._check_names(feeds)
        with _sentences(f"onnxruntime cannot run {self.label}"):
            found = self.session.run(names, dict(feeds))
        return dict(itertools.chain.from_iterable(map(_arrays, names, found)))

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that really loaded."""
        return tuple(self.session.get_providers())

    @property
    def description(self) -> str:
        import onnxruntime as ort

        if self.threads is None:
            threads = f"its own choice of threads on {os.cpu_count()} logical cores"
        else:
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"onnxruntime {ort.__version__}, {', '.join(self.providers)}, {threads}, graph optimization {self.level}"

    def _check_names(self, feeds: Mapping[str, Array]) -> None:
        known = [value.name for value in self.session.get_inputs()]
        for name in feeds:
            if name not in known and name not in {v.name for v in self.session.get_overridable_initializers()}:
                raise ModelError(f"{self.label} has no input '{name}'{nearest(name, known)}")
        for name in known:
            if name not in feeds:
                raise ModelError(f"{self.label}: input '{name}' is missing{nearest(name, feeds)}")


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """The arrays in a value, by name: itself, those in a sequence or a map, none in an absent optional."""
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        if value is not None:
            yield name, np.asarray(value)
        return
    for key, held in inner:
        yield from _arrays(f"{name}[{key}]", held)


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turn onnxruntime's errors into one sentence."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError | ValueError | TypeError):
            raise ModelError(f"{what}: {_first_sentence(str(error))}") from error
        raise


def _first_sentence(message: str) -> str:
    """What onnxruntime says, without its codes, source positions and boilerplate; and a remedy where there is one."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", message)
    text = re.sub(r"\S*/onnxruntime/\S+:\d+ .*?\) ", "", text)
    for boilerplate in _BOILERPLATE:
        text = re.sub(boilerplate, "", text)
    said = " ".join(text.split()).rstrip(". ")[:400] or "no reason given"
    remedy = next((remedy for mark, remedy in _REMEDIES.items() if mark in said), "")
    return f"{said}; {remedy}" if remedy else said


def _node_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Mean microseconds by node, the first run left out."""
    suffix = "_kernel_time"
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(suffix):
            found[event["name"].removesuffix(suffix), event["args"]["op_name"]].append(float(event["dur"]))
    warm = {key: times[len(times) // (1 + _PROFILE_RUNS) :] for key, times in found.items()}
    return [(node, op, sum(times) / _PROFILE_RUNS) for (node, op), times in warm.items()]
