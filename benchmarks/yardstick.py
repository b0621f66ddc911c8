"""How far onnxruntime's outputs are from its own where nothing but last bits differ.

A network that rounds real numbers to integers makes a whole step of a last bit wherever a number lies half-way between
two integers, and its layers may make more of that step. How much belongs to the network: a runtime that computes every
layer rightly is about as far from onnxruntime as onnxruntime is from itself

  - without the optimizations of the graph, and
  - with every weight that is a real number multiplied by 1 or by one of the two numbers next to it, at random.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from models import Feed, Run, onnxruntime_run

from pumice.measure import pick_runtime
from pumice.model import load

DRAWS = 4
FEWEST = 16
"""Elements of a weight: fewer may be the factors by which something is resized, which must stay what they are."""


def onnxruntime_itself(path: Path, feeds: Sequence[Feed]) -> float:
    """The largest difference of an output of any of these to that of the file as it is, over its largest value."""
    run = onnxruntime_run(path)
    usual = [run(feed) for feed in feeds]
    return max(apart(other(feed), output) for other in _others(path) for feed, output in zip(feeds, usual, strict=True))


def _others(path: Path) -> Iterator[Run]:
    yield pick_runtime({"name": "ort", "graph_optimization": "none"}).open(path).run
    for seed in range(DRAWS):
        yield pick_runtime("ort").open(nudged(path, seed)).run


def nudged(path: Path, seed: int) -> ir.Model:
    """The model with other last bits in its weights."""
    rng, model = np.random.default_rng(seed), load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT and value.const_value.size >= FEWEST:
            array = value.const_value.numpy()
            factors = 1 + rng.integers(-1, 2, array.shape).astype(np.float32) * np.finfo(np.float32).eps
            value.const_value = ir.tensor(array * factors, name=value.name)
    return model


def apart(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest difference of an output of real numbers, over its largest value."""
    return max(
        (
            float(np.abs(found[name] - value).max() / max(np.abs(value).max(), np.finfo(np.float32).tiny))
            for name, value in wanted.items()
            if value.size and value.dtype.kind == "f"
        ),
        default=0.0,
    )
