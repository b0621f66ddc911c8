"""The exporter `tensorrt`: a model made ready, an engine built from it, both in one file's place or nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice.errors import KnobError
from pumice.knobs import Choice, Float, Names, Text, knob
from pumice.strategy import Exporter
from pumice_export_tensorrt.engine import FLAGS, Engine, Sizes, missing, replace, tensorrt

if TYPE_CHECKING:
    import onnx_ir as ir

STEP = "export"
_SIZES = re.compile(r"([^=]+)=(\d+):(\d+):(\d+)")


@attrs.frozen(kw_only=True)
class TensorRt(Exporter):
    """A TensorRT engine: quantized layers in 8-bit integers, the others in 16-bit floats."""

    name = "tensorrt"

    floats: str = knob("float16", Choice(*FLAGS), help="type of what is not made of integers")
    sizes: tuple[str, ...] = knob((), Names(), help="sizes of free dimensions, as N=1:8:32: the least, usual and most")
    calibration: str = knob("", Text("path"), help="samples to quantize a model in floats with; empty leaves it so")
    timing_cache: str = knob("", Text("path"), help="file that remembers the times of kernels; empty is none")
    workspace: float = knob(1024.0, Float(1.0, 1e6), help="megabytes that a kernel may use")

    def available(self) -> str | None:
        return missing()

    def export(self, model: ir.Model, path: Path, context: Any) -> list[Path]:
        """Build the engine and write it; `context.ledger` is told what it is made of.

        Raises:
            ModelError: TensorRT does not take the model; its integers are not TensorRT's.
            KnobError: `sizes` that cannot be read.
            PumiceError: TensorRT, or a GPU, is missing; the file cannot be written.
        """
        from pumice.model import save
        from pumice_export_tensorrt.preparation import is_quantized, prepared

        version, sizes = tensorrt().__version__, parsed(self.sizes)
        if self.calibration and not is_quantized(model):
            model = _quantized(model, self.calibration)
        integers = is_quantized(model)
        engine = Engine(
            floats=self.floats, integers=integers, sizes=sizes, workspace=round(self.workspace * 1e6),
            timing_cache=Path(self.timing_cache) if self.timing_cache else None,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "model.onnx")
            save(prepared(model), source)
            replace(path, engine.build(source))
        made_of = f"8-bit integers and {self.floats}" if integers else self.floats
        context.ledger.note(STEP, f"built by TensorRT {version} for this GPU, of {made_of}")
        return [path]


def parsed(sizes: Sequence[str]) -> Sizes:
    """By name of the dimension.

    Raises:
        KnobError: one that is not least:usual:most.
    """
    found = {}
    for text in sizes:
        match = _SIZES.fullmatch(text)
        least, usual, most = map(int, match.groups()[1:]) if match else (1, 0, 0)
        if match is None or not 1 <= least <= usual <= most:
            raise KnobError(f"sizes '{text}' should be a dimension with its least, usual and most size, as N=1:8:32")
        found[match[1]] = (least, usual, most)
    return found


def _quantized(model: ir.Model, samples: str) -> ir.Model:
    """In symmetric integers, calibrated by pumice."""
    import pumice

    recipe = {"step": [{"use": "quantize", "target": "tensorrt"}]}
    return pumice.compress(model, samples, recipe, measure=False).model
