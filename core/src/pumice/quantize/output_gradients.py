"""How the outputs of a model move with its weights, by backward passes with random signs.

Let J be the Jacobian of all outputs, in units of their signal. For signs v drawn at random, g = J^T v has
E (g . e)^2 = |J e|^2 for any change e of the weights, and E g^2 is the diagonal of J^T J: the Fisher information of
outputs with noise of one size. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.autograd import Tape
from pumice.plan import compile_plan
from pumice.quantize.context import QuantizeContext
from pumice.registry import registry

SAMPLES = 32
DRAWS = 4
"""Backward passes a sample, each with signs of its own."""


def output_gradients(
    model: ir.Model, names: Iterable[str], context: QuantizeContext, *, draws: int = DRAWS
) -> Iterator[dict[str, NDArray[Any]]]:
    """g for the named initializers, one dictionary a backward pass.

    Raises:
        UnsupportedOp: an operator between the weights and the outputs has no gradient.
    """
    plan = compile_plan(model, ops=registry().ops, kernels=registry().kernels)
    outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    tape, random = Tape(plan, sorted(set(names)), outputs=outputs), np.random.default_rng(context.seed)
    for feeds in context.feeds(SAMPLES):
        for _ in range(draws):
            found, pull = tape.forward(feeds)
            yield pull({name: _signs(found[name], random) for name in outputs})


def _signs(output: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Random signs, in units of the output's signal."""
    wide = output.astype(np.float64)
    signal = np.sum((wide - wide.mean()) ** 2) if wide.size > 1 else np.sum(wide**2)
    drawn = random.integers(0, 2, output.shape) * 2.0 - 1.0
    return np.asarray(drawn / np.sqrt(max(float(signal), 1e-30)), output.dtype)
