"""Models written as ONNX text, and their gradients by central differences."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.plan import compile_plan


@pytest.fixture
def plan():
    """Compiles the text of a graph."""

    def parse(graph, opset=21):
        text = f'<ir_version: 10, opset_import: ["" : {opset}, "my.domain" : 1]>\n{graph}'
        return compile_plan(ir.from_proto(onnx.parser.parse_model(text)))

    return parse


@pytest.fixture
def numeric():
    """The gradient of <dy, output> with respect to one feed, element by element."""

    def gradient(plan, feeds, name, dy, step=1e-6):
        (output,) = plan.output_names
        found = np.empty_like(feeds[name])
        for index in np.ndindex(*found.shape):
            ends = []
            for sign in (1, -1):
                moved = feeds[name].copy()
                moved[index] += sign * step
                ends.append((plan.run({**feeds, name: moved})[output] * dy).sum())
            found[index] = (ends[0] - ends[1]) / (2 * step)
        return found

    return gradient
