"""Whole networks on the runtime `cuda` against PyTorch in 16-bit floats, eager and compiled.

Weights are random, of the networks' real shapes; quantized networks are calibrated on random data. A call takes inputs
on the GPU and leaves outputs there. The check holds floats to core's reference, and integers to the simulation of ONNX
Runtime's, for a few samples.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import networks

from . import Case, Contest

PIXELS, TOKENS, WORDS = 224, 128, 1000
QUICKEST = {"name": "int8", "calibrator": "minmax", "rounding": "nearest", "correct_bias": False}
"""Weights are random: how well they are rounded says nothing, and how fast they run does not depend on it."""
CLOSE = {"float32": 2e-3, "int8": 2e-2}
"""Of the outputs' norm, that a difference may have; TF32 rounds to 10 bits, a level beside a tie moves others."""
CHECKED = 2
"""Samples, one by one."""


@attrs.frozen(kw_only=True)
class Shape:
    """A network."""

    write: Callable[[Path], Path]
    draw: Callable[[np.random.Generator, int], np.ndarray]
    """Input of a batch."""
    peer: Callable[[], Any]
    """The same network in PyTorch, in 16 bits on the GPU."""
    needs: str
    """The package that has it."""
    weights: float
    operations: float
    """Of one sample, a multiply-add counting two."""


def _resnet() -> Any:
    import torch
    import torchvision

    network = torchvision.models.resnet50().cuda().half().eval()
    return network.to(memory_format=torch.channels_last)


def _bert() -> Any:
    import transformers

    shape = transformers.BertConfig(vocab_size=WORDS)
    return transformers.BertModel(shape, add_pooling_layer=False).cuda().half().eval()


SHAPES: Mapping[str, Shape] = {
    "ResNet50": Shape(
        write=lambda folder: networks.resnet50(folder / "resnet50.onnx"),
        draw=lambda rng, batch: rng.normal(size=(batch, 3, PIXELS, PIXELS)).astype(np.float32),
        peer=_resnet, needs="torchvision", weights=25.6e6, operations=8.2e9,
    ),
    "BERT-base": Shape(
        write=lambda folder: networks.bert(folder / "bert.onnx", words=WORDS),
        draw=lambda rng, batch: rng.integers(0, WORDS, (batch, TOKENS)),
        peer=_bert, needs="transformers", weights=86e6, operations=2 * TOKENS * (85e6 + 12 * 2 * TOKENS * 768),
    ),
}  # fmt: skip


def cases(quick: bool) -> Iterator[Case]:
    for name, shape in SHAPES.items():
        for kind in ("int8", "float32"):
            for batch in (1,) if quick else (1, 64):
                yield Case(
                    family="models", name=f"{name} {kind} batch {batch}", target=1.0,
                    operations=batch * shape.operations, moved=shape.weights * (1 if kind == "int8" else 4),
                    needs=[shape.needs],
                    build=lambda sets, s=shape, k=kind, b=batch: _contest(s, k, b),
                )  # fmt: skip


def _contest(shape: Shape, kind: str, batch: int) -> Contest:
    import cupy
    import torch

    from pumice_cuda.runtime.strategy import CudaRuntime

    rng = np.random.default_rng()
    model = _model(shape, kind)
    opened, x = CudaRuntime().open(model), shape.draw(rng, batch)
    there = {"x": cupy.asarray(x)}
    tensor = torch.from_dlpack(there["x"])
    fed = tensor.half().contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    eager = shape.peer()
    compiled = torch.compile(eager)

    def check() -> str | None:
        samples = [shape.draw(rng, 1) for _ in range(CHECKED)]
        found, want = (np.concatenate([run(s) for s in samples]) for run in (outputs, expected))
        error = float(np.linalg.norm(found - want) / np.linalg.norm(want))
        return None if error < CLOSE[kind] else f"outputs differ by {error:.2g} of their norm"

    def outputs(sample: np.ndarray) -> np.ndarray:
        (found,) = opened.run({"x": sample}).values()
        return found

    def expected(sample: np.ndarray) -> np.ndarray:
        return _expected(model, kind, sample)

    def without_gradients(network: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return network(fed)

        return call

    return Contest(
        check=check,
        ours=[lambda: opened.plan.run(there)],
        peers={"torch half": [without_gradients(eager)], "torch.compile half": [without_gradients(compiled)]},
    )


@functools.cache
def _model(shape: Shape, kind: str) -> Any:
    import pumice
    from pumice.data import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        model = pumice.load(shape.write(Path(folder)))
    if kind == "float32":
        return model
    samples = {"x": shape.draw(np.random.default_rng(0), 2)}
    recipe = {"step": [{"use": "quantize", "quantizer": QUICKEST}]}
    return pumice.compress(model, open_dataset(samples, model), recipe, measure=False).model


def _expected(model: Any, kind: str, x: np.ndarray) -> np.ndarray:
    from pumice.plan import compile_plan
    from pumice.quantize.simulation import simulate

    plan = simulate(model) if kind == "int8" else compile_plan(model, kernels=())
    (found,) = plan.run({"x": x}).values()
    return found
