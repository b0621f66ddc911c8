"""Every way in which networks tie channels, each as the smallest graph that has it.

A structure is the body of a graph in ONNX text from `x` to `y`, the shapes of its weights, and the groups that must be
found: the channels of each, by the name of its root value and axis.
"""

import attrs
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from pumice.model import infer_shapes


@attrs.frozen
class Structure:
    inputs: str
    body: str
    weights: dict
    groups: dict
    outputs: str = "float[N,K] y"
    opset: int = 21

    def model(self):
        head = f'<ir_version: 10, opset_import: ["" : {self.opset}]>'
        text = f"{head} g ({self.inputs}) => ({self.outputs}) {{ {self.body} }}"
        proto = onnx.parser.parse_model(text)
        generator = np.random.default_rng(3)
        for name, weight in self.weights.items():
            array = weight if isinstance(weight, np.ndarray) else drawn(name, weight, generator)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for number, node in enumerate(proto.graph.node):
            node.name = f"{node.op_type.lower()}_{number}"
        return infer_shapes(ir.from_proto(proto))


def drawn(name, shape, generator):
    """Variances are positive, all else is normal with the scale of its fan-in."""
    array = generator.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
    return (np.abs(array) + 0.5 if name.startswith("var") else array).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


CONV = "kernel_shape=[3,3], pads=[1,1,1,1]"
TAIL = "p = GlobalAveragePool(z) f = Flatten(p) y = MatMul(f, head)"
IMAGE = "float[N,3,8,8] x"

STRUCTURES = {
    "residual chain": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) r = Relu(a) b = Conv<{CONV}>(r, w1) c = Add(a, b) "
        f"d = Conv<{CONV}>(c, w2) z = Add(c, d) {TAIL}",
        {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "head": (8, 5)},
        {"a[1]": 8},
    ),
    "dense concatenation": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Conv<{CONV}>(a, w1) c = Concat<axis=1>(a, b) d = Conv<{CONV}>(c, w2) "
        f"z = Concat<axis=1>(c, d) {TAIL}",
        {"w0": (8, 3, 3, 3), "w1": (4, 8, 3, 3), "w2": (4, 12, 3, 3), "head": (16, 5)},
        {"a[1]": 8, "b[1]": 4, "d[1]": 4},
    ),
    "split and chunk": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) u, v = Split<axis=1, num_outputs=2>(a) b = Conv<{CONV}>(u, w1) c = Mul(b, v) "
        f"z = Concat<axis=1>(u, c) {TAIL}",
        {"w0": (12, 3, 3, 3), "w1": (6, 6, 3, 3), "head": (12, 5)},
        {"a[1]": 12},
    ),
    "channel shuffle": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Reshape(a, apart) c = Transpose<perm=[0,2,1,3,4]>(b) d = Reshape(c, together) "
        f"e = Conv<{CONV}, group=12>(d, w1) z = Conv<group=3, kernel_shape=[1,1]>(e, w2) {TAIL}",
        {
            "w0": (12, 3, 3, 3),
            "apart": ints(0, 3, 4, 8, 8),
            "together": ints(0, -1, 8, 8),
            "w1": (12, 1, 3, 3),
            "w2": (6, 4, 1, 1),
            "head": (6, 5),
        },
        {"z[1]": 2},
    ),
    "squeeze and excite": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0, b0) q = GlobalAveragePool(a) s = Conv<kernel_shape=[1,1]>(q, w1) t = LeakyRelu(s) "
        f"u = Conv<kernel_shape=[1,1]>(t, w2, b2) v = Sigmoid(u) z = Mul(a, v) {TAIL}",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1), "b2": (8,), "head": (8, 5)},
        {"a[1]": 8, "s[1]": 4},
    ),
    "grouped convolution": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Conv<{CONV}, group=2>(a, w1, b1) z = Relu(b) {TAIL}",
        {"w0": (8, 3, 3, 3), "w1": (12, 4, 3, 3), "b1": (12,), "head": (12, 5)},
        {"a[1]": 4, "b[1]": 6},
    ),
    "depthwise with a multiplier": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) z = Conv<{CONV}, group=6>(a, w1, b1) {TAIL}",
        {"w0": (6, 3, 3, 3), "w1": (12, 1, 3, 3), "b1": (12,), "head": (12, 5)},
        {"a[1]": 6},
    ),
    "transposed convolution": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(a, w1, b1) "
        f"c = ConvTranspose<kernel_shape=[2,2], group=2>(b, w2) "
        f"z = ConvTranspose<kernel_shape=[1,1], group=6>(c, w3) {TAIL}",
        {"w0": (6, 3, 3, 3), "w1": (6, 8, 2, 2), "b1": (8,), "w2": (8, 3, 2, 2), "w3": (6, 1, 1, 1), "head": (6, 5)},
        {"a[1]": 6, "b[1]": 4, "c[1]": 3},
    ),
    "flatten into a matrix": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) f = Flatten(a) g = Gemm<transB=1>(f, w1, b1) h = Relu(g) y = Gemm(h, w2, b2)",
        {"w0": (6, 3, 3, 3), "w1": (10, 384), "b1": (10,), "w2": (10, 5), "b2": (5,)},
        {"a[1]": 6, "g[1]": 10},
    ),
    "batch and instance norm": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = BatchNormalization(a, s, t, mean, var) c = InstanceNormalization(b, s2, t2) "
        f"z = PRelu(c, slope) {TAIL}",
        {
            "w0": (6, 3, 3, 3),
            "s": (6,),
            "t": (6,),
            "mean": (6,),
            "var": (6,),
            "s2": (6,),
            "t2": (6,),
            "slope": (6, 1, 1),
            "head": (6, 5),
        },
        {"a[1]": 6},
    ),
    "group norm": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) z = GroupNormalization<num_groups=2>(a, s, t) {TAIL}",
        {"w0": (8, 3, 3, 3), "s": (8,), "t": (8,), "head": (8, 5)},
        {"a[1]": 4},
    ),
    "group norm of reshapes": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Reshape(a, apart) c = InstanceNormalization(b, ones, zeros) e = Shape(a) "
        f"d = Reshape(c, e) z = Mul(d, s) {TAIL}",
        {
            "w0": (8, 3, 3, 3),
            "apart": ints(0, 2, -1),
            "ones": np.ones(2, np.float32),
            "zeros": np.zeros(2, np.float32),
            "s": (8, 1, 1),
            "head": (8, 5),
        },
        {"b[1]": 2},
    ),
    "hidden axis of a transformer": Structure(
        "int64[N,S] x",
        "e = Gather(table, x) n = LayerNormalization(e, s, t) a = MatMul(n, w1) g = MatMul(n, w2) h = Swish(g) "
        "m = Mul(a, h) o = MatMul(m, w3) r = Add(e, o) q = RMSNormalization(r, s2) "
        "u = Transpose<perm=[1,0]>(table) y = MatMul(q, u)",
        {"table": (11, 8), "s": (8,), "t": (8,), "w1": (8, 12), "w2": (8, 12), "w3": (12, 8), "s2": (8,)},
        {"e[2]": 8, "a[2]": 12},
        outputs="float[N,S,11] y",
        opset=24,
    ),
    "attention by hand": Structure(
        "float[N,S,6] x",
        "p = MatMul(x, w) e = Shape(p) n = Gather(e, zero) l = Gather(e, one) i = Concat<axis=0>(n, l, heads, size) "
        "q0 = MatMul(p, wq) q1 = Reshape(q0, i) q = Transpose<perm=[0,2,1,3]>(q1) "
        "k0 = MatMul(p, wk) k1 = Reshape(k0, i) k = Transpose<perm=[0,2,3,1]>(k1) "
        "v0 = MatMul(p, wv) v1 = Reshape(v0, i) v = Transpose<perm=[0,2,1,3]>(v1) "
        "d = Shape<start=-1>(q) df = Cast<to=1>(d) root = Sqrt(df) "
        "a0 = MatMul(q, k) a1 = Div(a0, root) a = Softmax<axis=-1>(a1) o0 = MatMul(a, v) "
        "o1 = Transpose<perm=[0,2,1,3]>(o0) "
        "j = Concat<axis=0>(n, l, rest) o = Reshape(o1, j) y = MatMul(o, wo)",
        {
            "w": (6, 10),
            "wq": (10, 12),
            "wk": (10, 12),
            "wv": (10, 12),
            "wo": (12, 5),
            "zero": ints(0),
            "one": ints(1),
            "heads": ints(3),
            "size": ints(4),
            "rest": ints(-1),
        },
        {"q1[2]": 3, "q1[3]": 4, "v1[3]": 4, "p[2]": 10},
        outputs="float[N,S,5] y",
    ),
    "fused projections": Structure(
        "float[N,7,6] x",
        "p = MatMul(x, w) b = Add(p, bias) r = Reshape(b, apart) t = Transpose<perm=[2,0,3,1,4]>(r) "
        "q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2) "
        "kt = Transpose<perm=[0,1,3,2]>(k) a0 = MatMul(q, kt) "
        "a = Softmax<axis=-1>(a0) o0 = MatMul(a, v) o1 = Transpose<perm=[0,2,1,3]>(o0) "
        "o = Reshape(o1, together) y = MatMul(o, wo)",
        {
            "w": (6, 36),
            "bias": (36,),
            "apart": ints(0, 0, 3, 3, 4),
            "i0": np.array(0),
            "i1": np.array(1),
            "i2": np.array(2),
            "together": ints(0, 0, 12),
            "wo": (12, 5),
        },
        {"r[3]": 3, "r[4]": 4},
        outputs="float[N,7,5] y",
    ),
    "grouped queries": Structure(
        "float[N,7,6] x",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) o = Attention<q_num_heads=6, kv_num_heads=3>(q, k, v) "
        "y = MatMul(o, wo)",
        {"wq": (6, 24), "wk": (6, 12), "wv": (6, 12), "wo": (24, 5)},
        {"q[2]": 3},
        outputs="float[N,7,5] y",
        opset=23,
    ),
    "long short-term memory": Structure(
        "float[T,N,6] x",
        'p = MatMul(x, w) a, b, c = LSTM<hidden_size=5, direction="bidirectional">(p, w1, r1, b1) '
        "d = Transpose<perm=[0,2,1,3]>(a) e = Reshape(d, flat) y = MatMul(e, head)",
        {"w": (6, 8), "w1": (2, 20, 8), "r1": (2, 20, 5), "b1": (2, 40), "flat": ints(0, 0, -1), "head": (10, 4)},
        {"p[2]": 8, "d[3]": 5},
        outputs="float[T,N,4] y",
    ),
    "gated recurrent unit": Structure(
        "float[T,N,6] x",
        "a, b = GRU<hidden_size=5, linear_before_reset=1>(x, w1, r1, b1) c = Squeeze(b, zero) y = MatMul(c, head)",
        {"w1": (1, 15, 6), "r1": (1, 15, 5), "b1": (1, 30), "zero": ints(0), "head": (5, 4)},
        {"a[3]": 5},
    ),
    "tied weights": Structure(
        "float[N,6] x",
        "a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w1) y = MatMul(e, head)",
        {"w0": (6, 8), "w1": (8, 8), "head": (8, 4)},
        {"a[1]": 8},
    ),
    "zeros for new channels": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Conv<{CONV}>(a, w1) c = Pad(a, pads) z = Add(b, c) {TAIL}",
        {"w0": (4, 3, 3, 3), "w1": (8, 4, 3, 3), "pads": ints(0, 2, 0, 0, 0, 2, 0, 0), "head": (8, 5)},
        {"b[1]": 8},
    ),
    "depth to space": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) z = DepthToSpace<blocksize=2>(a) {TAIL}",
        {"w0": (16, 3, 3, 3), "head": (4, 5)},
        {"a[1]": 4},
    ),
    "slices with a stride": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) b = Slice(a, s0, e0, ax, two) c = Slice(a, s1, e1, ax, two) z = Mul(b, c) {TAIL}",
        {
            "w0": (12, 3, 3, 3),
            "s0": ints(0),
            "s1": ints(5),
            "e0": ints(8),
            "e1": ints(12),
            "ax": ints(1),
            "two": ints(2),
            "head": (4, 5),
        },
        {"a[1]": 8},
    ),
    "mean and length over channels": Structure(
        IMAGE,
        f"a = Conv<{CONV}>(x, w0) m = ReduceMean<keepdims=1>(a, one) n = ReduceL2<keepdims=1>(a, one) b = Sub(a, m) "
        f"z = Div(b, n) {TAIL}",
        {"w0": (8, 3, 3, 3), "one": ints(1), "head": (8, 5)},
        {"a[1]": 8},
    ),
    "einsum and expand": Structure(
        "float[N,6] x",
        'a = Einsum<equation="nk,hk->nh">(x, w0) e = Expand(bias, size) b = Add(a, e) '
        'y = Einsum<equation="nh,ho->no">(b, w1)',
        {"w0": (8, 6), "bias": (1, 1), "size": ints(1, 8), "w1": (8, 4)},
        {"a[1]": 8},
    ),
}
