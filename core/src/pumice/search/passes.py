"""How often a repair may pass over the data: what a budget has room for, by a step of training that is timed first.

A step runs the model forward on a few samples and its gradients backward, with the kernels that train it; a pass takes
as many times longer as there are more samples, and a half more for the teacher, the optimizer and the judging. Counts
are rounded down to powers of two or what lies halfway between them, so that two timings of one model mostly lead to
the same recipes.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from pumice.steps import Train

if TYPE_CHECKING:
    import onnx_ir as ir

    from pumice.data import Dataset

PROBED, ROUNDS, ENOUGH = 16, 3, 3.0
"""Samples of the step that is timed, and how often; the first also opens what the others use, and where these seconds
are over it is the last."""
BESIDE = 1.5
"""Times that a pass takes longer than its steps forward and backward."""
REPAIR_STEPS, MOST_PASSES = 6000, 30
"""Updates of the weights that a repair should have, and passes over few data that it may take for them."""


def seconds_of_a_pass(model: ir.Model, dataset: Dataset) -> float:
    """What training on all samples once takes here, about.

    Raises:
        PumiceError: the model cannot be trained, or a sample cannot be read.
    """
    from pumice.autograd import Tape
    from pumice.train.application import trainable_plan
    from pumice.train.parameters import Parameters

    plan = trainable_plan(model)
    parameters = Parameters.of(plan)
    tape = Tape(plan, parameters.values, training=True)
    batch = next(dataset.select(range(min(PROBED, dataset.count()))).batches(PROBED))
    took: list[float] = []
    while len(took) < ROUNDS and sum(took) < ENOUGH:
        began = time.perf_counter()
        outputs, pull = tape.forward({**batch.feeds, **parameters.fed()})
        pull({name: np.ones_like(value) for name, value in outputs.items() if value.dtype.kind == "f"})
        took.append(time.perf_counter() - began)
    return BESIDE * min(took) * dataset.count() / batch.size


def wanted_passes(samples: int) -> int:
    """Passes over so many samples that a repair should have."""
    steps: int = max(1, samples // Train.knobs()["batch"].default)
    return min(max(1, round(REPAIR_STEPS / steps)), MOST_PASSES)


def rounded_passes(count: float) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16 ... that is not above a count; 0 below one."""
    if count < 1:
        return 0
    power: int = 2 ** math.floor(math.log2(count))
    return power + power // 2 if count >= 1.5 * power else power
