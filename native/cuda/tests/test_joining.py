"""Concat of few and of many arrays."""

import numpy as np
import pytest

from pumice.ops.record import Node
from pumice_cuda.kernels.joining import AT_ONCE, _concat


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 1, 20])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_arrays_of_any_number_are_joined(gpu, rng, count, axis):
    shapes = [[4, 3, 2] for _ in range(count)]
    for shape in shapes:
        shape[axis] = rng.integers(0, 4)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    node = Node(op_type="Concat", domain="", opset=13, attributes={"axis": axis}, outputs=("y",))
    (found,) = _concat(node, *map(gpu.asarray, arrays))
    np.testing.assert_array_equal(gpu.asnumpy(found), np.concatenate(arrays, axis))
