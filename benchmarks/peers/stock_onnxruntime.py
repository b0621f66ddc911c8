"""Post-training INT8 as onnxruntime ships it, with nothing tuned to a model.

Static quantization is QDQ with unsigned 8-bit activations and signed 8-bit weights per channel (U8S8). Before it, as
its documentation asks, the opset is raised to 13, without which there are no per-channel weights, and the model goes
through `quant_pre_process` (shape inference, constant folding, fusion of batch normalisation).
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import numpy as np

Feeds = list[dict[str, np.ndarray]]

PER_CHANNEL_OPSET = 13
LINEAR = ("Conv", "Gemm", "MatMul")


@attrs.frozen(kw_only=True)
class Variant:
    """One configuration of onnxruntime's quantizer; its fields are all that the result depends on."""

    id: str
    mode: Literal["static", "dynamic"]
    operators: tuple[str, ...] = ()
    """Operator types to quantize; empty means all that onnxruntime would."""
    calibration: Literal["MinMax", "Percentile", "Entropy"] = "MinMax"
    percentile: float = 99.99
    per_channel: ClassVar[bool] = True

    def quantize(self, source: Path, feeds: Feeds, target: Path) -> None:
        """Write the quantized `source` to `target`."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_dynamic,
            quantize_static,
        )

        operators = list(self.operators) or None
        with tempfile.TemporaryDirectory() as work:
            prepared = preprocessed(source, Path(work))
            if self.mode == "dynamic":
                quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, op_types_to_quantize=operators)
                return
            options: dict[str, Any] = {"ActivationSymmetric": False}
            if self.calibration == "Percentile":
                options["CalibPercentile"] = self.percentile
            quantize_static(
                prepared,
                target,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=self.per_channel,
                op_types_to_quantize=operators,
                calibrate_method=CalibrationMethod[self.calibration],
                extra_options=options,
            )


@attrs.frozen(kw_only=True)
class PerTensor(Variant):
    """One scale for all of a weight, as onnxruntime does without being told."""

    per_channel: ClassVar[bool] = False


STOCK = (
    Variant(id="ort static", mode="static"),
    Variant(id="ort dynamic", mode="dynamic"),
)
"""The two that a user meets first: every operator type, min-max."""

PER_TENSOR = PerTensor(id="ort static, per tensor", mode="static")
"""For graphs on which `ort static` ends with an error."""

BEST_OF = (
    Variant(id="ort linear min-max", mode="static", operators=LINEAR),
    Variant(id="ort linear percentile", mode="static", operators=LINEAR, calibration="Percentile"),
    Variant(id="ort linear entropy", mode="static", operators=LINEAR, calibration="Entropy"),
)
"""Convolutions and matrix products only; a benchmark shows the best of these by test result, in their favour."""


def preprocessed(source: Path, work: Path) -> Path:
    """The model as onnxruntime wants it for quantization, in folder `work`; if a stage fails, the model before it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(source)
    if next(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"}) < PER_CHANNEL_OPSET:
        source = _with_raised_opset(model, work / "opset.onnx") or source
    target = work / "preprocessed.onnx"
    try:
        quant_pre_process(os.fspath(source), os.fspath(target), skip_symbolic_shape=True)
    except Exception:  # it names no class of its own: whatever it raises, the unprocessed model can still be quantized
        return source
    return target


def _with_raised_opset(model: Any, target: Path) -> Path | None:
    import onnx
    from onnx import version_converter

    try:
        raised = version_converter.convert_version(model, PER_CHANNEL_OPSET)
    except Exception:  # likewise
        return None
    raised.ir_version = max(raised.ir_version, 8)
    onnx.save(raised, target)
    return target


class _Reader:
    """onnxruntime's calibration reader: the next feed, or None."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)
