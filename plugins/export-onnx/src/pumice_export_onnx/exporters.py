"""The exporters: a form for the model, one way to write it.

Written is what has been verified: the file is made in a folder beside its place, checked by ONNX's checker and opened
by the best runtime installed; only then does it take its place, atomically. A refusal leaves what was there untouched
and nothing else behind.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import ModelError, NothingChanged, PumiceError
from pumice.knobs import Choice, Int, knob
from pumice.ledger import Ledger
from pumice.strategy import Exporter, Runtime

if TYPE_CHECKING:
    import onnx_ir as ir

STEP = "export"
_EXTERNAL = {"auto": None, "yes": True, "no": False}


@attrs.frozen(kw_only=True)
class Qdq(Exporter):
    """The model as it is: quantized tensors between QuantizeLinear and DequantizeLinear."""

    name = "qdq"

    external_data: str = knob(
        "auto", Choice(*_EXTERNAL), help="weights in a file of their own: auto does so above what one file can hold"
    )
    opset: int = knob(0, Int(0, 26), help="version of the ONNX operators to convert to; 0 keeps the model's")
    verify: bool = knob(True, help="open the file with the best runtime installed before it takes its place")

    def export(self, model: ir.Model, path: Path, context: Any) -> list[Path]:
        """Write the model; `context.ledger` is told how it was verified.

        Raises:
            ModelError: the model does not pass ONNX's checker, cannot be converted, or a runtime does not load it.
            NothingChanged: the form asked for is the one the model has.
            PumiceError: the file cannot be written.
        """
        from pumice.model import save

        ledger: Ledger = context.ledger
        external, formed = _EXTERNAL[self.external_data], self.form(model, ledger)
        if self.opset:
            formed = _converted(formed, self.opset)
        with _folder_beside(path) as folder:
            save(formed, folder / path.name, external_data=external)
            if self.verify:
                _open(folder / path.name, ledger)
        save(formed, path, external_data=external)  # the same bytes; it knows how to replace an old model
        return [path, *_data_files(path)]

    def form(self, model: ir.Model, ledger: Ledger) -> ir.Model:
        """What is written for the model."""
        return model


@attrs.frozen(kw_only=True)
class QOperator(Qdq):
    """Integer operators (QLinearConv, QGemm, QLinearAdd, ...) where ONNX Runtime would fuse them; the same integers."""

    name = "qoperator"

    def form(self, model: ir.Model, ledger: Ledger) -> ir.Model:
        from pumice.quantize.fusion import fused

        lines = Ledger()
        result = fused(model, lines)
        ledger.extend(lines)
        if not lines.of(STEP, "applied"):
            raise NothingChanged(
                f"exporter '{self.name}' found nothing to convert in '{model.graph.name or 'the model'}' "
                f"({_commonest_reason(lines)}): use exporter 'qdq'"
            )
        return result


def _commonest_reason(lines: Ledger) -> str:
    """Of nodes that were declined or, if there are none, skipped."""
    entries = lines.of(STEP, "declined") or lines.of(STEP, "skipped")
    reasons = [entry.reason for entry in entries]
    return max(sorted(set(reasons)), key=reasons.count, default="it has no nodes")


def _converted(model: ir.Model, opset: int) -> ir.Model:
    import onnx
    from onnx.version_converter import ConvertError, convert_version

    from pumice.model.skeleton import through

    if model.opset_imports.get("") == opset:
        return model
    try:
        return through(model, lambda proto: convert_version(proto, opset))
    except (RuntimeError, ConvertError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the model was not saved: it cannot be converted to opset {opset} ({_obstacle(str(error))}); "
            "leave knob 'opset' at 0"
        ) from error


_OBSTACLES = {
    r"No Previous Version of (\w+) exists": r"it has no operator \1 yet",
    r"No Adapter From Version \$?(\d+) for (\w+)": r"ONNX's converter cannot take \2 back from version \1",
}
"""What ONNX's converter means by its assertions."""


def _obstacle(message: str) -> str:
    """Why a conversion failed, without the assertion that noticed it."""
    for said, meant in _OBSTACLES.items():
        if found := re.search(said, message):
            return found.expand(meant)
    return re.sub(r".*Assertion `.*?` failed: ", "", message.strip().splitlines()[-1])


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the file system of `path` that goes away."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise PumiceError(
            f"'{path}' cannot be written ({error.strerror}): nothing was changed, choose a writable folder"
        ) from error
    with folder as name:
        yield Path(name)


def _open(path: Path, ledger: Ledger) -> None:
    runtime = _deployment_runtime()
    if runtime is None:
        ledger.note(STEP, "passed ONNX's checker; no runtime is installed that could open the file")
        return
    try:
        session = runtime.open(path)
    except ModelError as error:
        raise ModelError(f"the model was not saved: runtime '{runtime.name}' does not load it ({error})") from error
    ledger.note(STEP, f"opened by {session.description}")


def _deployment_runtime() -> Runtime | None:
    """The best available runtime, core's own for reference and simulation (rank 0 and below) excepted."""
    from pumice.registry import registry

    made = [registry().make(Runtime, name) for name in registry().strategies("runtime")]
    usable = [runtime for runtime in made if runtime.rank > 0 and runtime.available() is None]
    return max(usable, key=lambda runtime: runtime.rank, default=None)


def _data_files(path: Path) -> list[Path]:
    """The weight file that `save` may have written beside the model."""
    ours = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return sorted(found for found in path.parent.iterdir() if ours.fullmatch(found.name))
