"""Small teachers of every kind, students of them, and losses of a few lines."""

import attrs
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice.data import open_dataset
from pumice.distil.architectures import built
from pumice.distil.loss import DistillationLoss
from pumice.model import infer_shapes
from pumice.prune.sizes import with_sizes
from pumice.testing.models import tiny_cnn

TOKENS = """
<ir_version: 10, opset_import: ["" : 21]>
words (int64[N, T] ids) => (float[N, T, 11] logits) <float[11, 4] table, float[4, 11] w> {
    e = Gather(table, ids)
    logits = MatMul(e, w)
}"""


def words():
    """A model of token numbers (N, T), 11 words, that answers for every token."""
    proto = onnx.parser.parse_model(TOKENS)
    del proto.graph.value_info[:]
    draw = np.random.default_rng(0).standard_normal
    for name, shape in (("table", (11, 4)), ("w", (4, 11))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(shape).astype(np.float32), name))
    return infer_shapes(ir.from_proto(proto))


@pytest.fixture
def network():
    """A network of a family, for pictures (N, 3, 8, 8) in 5 classes or for sequences of 11 words."""

    def build(family, seed=0, **sizes):
        like = tiny_cnn() if family in {"resnet", "mobilenet"} else words()
        return with_sizes(built({"family": family, **sizes}, like, seed))

    return build


def pictures(count, seed=0):
    """Random pictures, and the class with the largest of five fixed projections."""
    x = np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)
    projection = np.random.default_rng(99).standard_normal((3 * 64, 5))
    return {"x": x, "labels": (x.reshape(count, -1) @ projection).argmax(axis=1)}


@pytest.fixture
def dataset():
    return open_dataset(pictures(96), tiny_cnn())


@attrs.frozen(kw_only=True)
class Square(DistillationLoss):
    """Mean squared difference of outputs."""

    name = "square"

    def compare(self, student, target, progress):
        difference = student - target.value
        return float(np.square(difference).mean()), difference * (2 / difference.size)


@attrs.frozen(kw_only=True)
class Features(Square):
    """Mean squared difference of features."""

    name = "features"
    compares = "features"


@attrs.frozen(kw_only=True)
class Weighted(Features):
    """The same, weighted by what matters to the teacher."""

    name = "weighted"
    attribution = "gradient"

    def compare(self, student, target, progress):
        difference = student - target.value
        weighted = target.importance * difference
        return float((weighted * difference).mean()), weighted * (2 / difference.size)
