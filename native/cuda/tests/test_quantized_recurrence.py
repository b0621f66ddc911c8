"""LSTMs of 8 bits where no kernel takes them: core's code runs on CuPy's arrays, and looks at nothing on the way."""

import numpy as np

from pumice.ops import core_table
from pumice.ops.record import Node
from pumice_cuda.transfers import to_host

HIDDEN, INPUTS = 6, 5


def test_steps_stay_on_the_gpu(gpu, rng):
    attributes, outputs = {"hidden_size": HIDDEN}, ("y", "h", "c")
    node = Node(op_type="DynamicQuantizeLSTM", domain="com.microsoft", attributes=attributes, outputs=outputs)
    x, bias = rng.normal(size=(4, 2, INPUTS)).astype(np.float32), rng.normal(size=(1, 8 * HIDDEN)).astype(np.float32)
    w, r = (rng.integers(-128, 128, (1, n, 4 * HIDDEN)).astype(np.int8) for n in (INPUTS, HIDDEN))
    scale, zero = rng.uniform(0.01, 0.02, (1, 4 * HIDDEN)).astype(np.float32), np.zeros((1, 4 * HIDDEN), np.int8)
    arrays = [x, w, r, bias, None, None, None, None, scale, zero, scale, zero]
    forward = core_table().resolve(node.domain, node.op_type, 1).forward
    gpu.looks.clear()
    found = forward(node, *(None if a is None else gpu.asarray(a) for a in arrays))
    assert not gpu.looks
    for have, want in zip(found, forward(node, *arrays), strict=True):
        np.testing.assert_allclose(to_host(have), want, rtol=1e-5, atol=1e-6)
