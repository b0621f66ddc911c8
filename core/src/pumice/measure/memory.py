"""Bytes: of the file, and at the peak of a run.

The peak is taken in a process of its own, so that nothing measured before it and nothing of the caller counts. There
the runtime first opens a model of one node, which loads its libraries; then the peak is reset, the model is opened and
run three times, and what the process grew by is the answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import PumiceError
from pumice.strategy import Runtime

TIMEOUT = 600.0
RUNS = 3


@attrs.frozen(kw_only=True)
class PeakMemory:
    """Peak memory of loading and running a model, in bytes."""

    model: int
    """Growth over the runtime with its libraries loaded."""
    process: int
    """The whole process."""

    def to_json(self) -> dict[str, int]:
        return attrs.asdict(self)


def file_bytes(path: Path) -> int:
    """Bytes of an ONNX file and of the files that hold its external data."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from pumice.model.reading import graphs

    proto = onnx.load(path, load_external_data=False)
    tensors = (tensor for graph in graphs(proto.graph) for tensor in graph.initializer)
    beside = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def peak_memory(
    path: Path, feeds: Mapping[str, NDArray[Any]], runtime: Runtime, *, threads: int | None = None
) -> PeakMemory:
    """Peak memory of opening a model file and running it on `feeds`.

    Raises:
        PumiceError: the process that measures failed; the sentence carries its reason.
    """
    with tempfile.TemporaryDirectory(prefix="pumice-") as folder:
        stored = Path(folder, "feeds.npz")
        np.savez(stored, **feeds)  # type: ignore[arg-type]
        task = {
            "runtime": {"name": runtime.name, **runtime.settings()},
            "model": str(path),
            "feeds": str(stored),
            "threads": threads,
        }
        command = [sys.executable, "-m", "pumice.measure.memory", json.dumps(task)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise PumiceError(f"peak memory was not measured: '{path.name}' ran longer than {TIMEOUT:g} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PumiceError(f"peak memory was not measured: the process for '{path.name}' failed ({reason})")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def _measure(task: Mapping[str, Any]) -> PeakMemory:
    """What runs in the process of its own."""
    from pumice.measure.runtimes import pick_runtime

    runtime = pick_runtime(task["runtime"])
    with np.load(task["feeds"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
    runtime.open(_one_node(), threads=task["threads"]).run({"x": np.zeros((1, 1), np.float32)})
    resident = _start_again()
    session = runtime.open(Path(task["model"]), threads=task["threads"])
    for _ in range(RUNS):
        session.run(feeds)
    peak = _peak()
    return PeakMemory(model=max(peak - resident, 0), process=peak)


def _one_node() -> Any:
    import onnx_ir as ir
    from onnx import parser

    text = '<ir_version: 8, opset_import: ["": 17]> one (float[N, 1] x) => (float[N, 1] y) { y = Relu(x) }'
    return ir.from_proto(parser.parse_model(text))


def _start_again() -> int:
    """Reset the peak where the system allows it (Linux); returns the bytes resident now."""
    import psutil

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()  # the peak so far is what later growth is counted from
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    """Peak resident bytes of this process. Not `ru_maxrss`, which Linux inherits from the parent."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1])).to_json()))  # noqa: T201 - the answer to the parent
