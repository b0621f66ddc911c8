"""PyTorch's training step of an ONNX file: the graph is interpreted operator by operator, in eager mode.

Every floating-point initializer but the running statistics is a parameter. A step is zero the gradients, forward,
cross-entropy, backward, AdamW. Before the first step the gradients of the untouched weights are written to a file.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

F = torch.nn.functional


def _conv(x: Any, w: Any, b: Any = None, *, strides: Any, pads: Any = (0, 0, 0, 0), group: int = 1, **_: Any) -> Any:
    return F.conv2d(x, w, b, strides, pads[:2], groups=group)


def _norm(x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, epsilon: float, momentum: float) -> Any:
    return F.batch_norm(x, mean, var, scale, bias, training=True, momentum=1 - momentum, eps=epsilon)


def _pool(x: Any, *, kernel_shape: Any, strides: Any, pads: Any = (0, 0, 0, 0)) -> Any:
    return F.max_pool2d(x, kernel_shape, strides, pads[:2])


def _layer_norm(x: Any, scale: Any, bias: Any, *, axis: int, epsilon: float) -> Any:
    return F.layer_norm(x, scale.shape, scale, bias, epsilon)


def _reshape(x: Any, shape: Any) -> Any:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


def _lstm(x: Any, w: Any, r: Any, b: Any, *, hidden_size: int) -> Any:
    """One direction; PyTorch's gates stand in the order input, forget, cell, output."""

    def turned(v: Any) -> Any:
        i, o, f, c = v.split(hidden_size)
        return torch.cat([i, f, c, o])

    halves = b[0].split(4 * hidden_size)
    weights = [turned(w[0]), turned(r[0]), *(turned(half) for half in halves)]
    zero = torch.zeros(1, x.shape[1], hidden_size, dtype=x.dtype)
    y, h, c = torch.lstm(x, (zero, zero), weights, True, 1, 0.0, True, False, False)
    return y[:, None], h, c


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "BatchNormalization": _norm,
    "MaxPool": _pool,
    "LayerNormalization": _layer_norm,
    "Reshape": _reshape,
    "LSTM": _lstm,
    "Relu": torch.relu,
    "Erf": torch.erf,
    "Add": torch.add,
    "Mul": torch.mul,
    "Div": torch.div,
    "MatMul": torch.matmul,
    "Gemm": lambda x, w, b: torch.addmm(b, x, w),
    "Flatten": lambda x: x.flatten(1),
    "Gather": lambda table, i: F.embedding(i, table),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "ReduceMean": lambda x, axes, keepdims: x.mean(tuple(axes), keepdim=bool(keepdims)),
    "Softmax": torch.softmax,
    "Squeeze": lambda x, axes: x.squeeze(int(axes)),
    "Transpose": lambda x, perm: x.permute(tuple(perm)),
}


def build(peer: str, *, seed: int, threads: int, model: str, batch: str, gradients: str) -> Callable[[], Any]:
    torch.set_num_threads(threads)
    graph = onnx.load(model).graph
    values = {i.name: torch.from_numpy(np.array(numpy_helper.to_array(i))) for i in graph.initializer}
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
    parameters = {
        name: value.requires_grad_() for name, value in values.items()
        if value.is_floating_point() and value.ndim and name not in statistics
    }  # fmt: skip
    with np.load(batch) as held:
        feeds = {"x": torch.from_numpy(held["x"]), "labels": torch.from_numpy(held["labels"])}
    steps = [
        (OPERATORS[n.op_type], n.input, n.output, {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
        for n in graph.node
    ]
    for _, _, _, attributes in steps:
        attributes.pop("kernel_shape", None) if "group" in attributes else None
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4, weight_decay=1e-2)

    def backward() -> None:
        optimizer.zero_grad()
        held = dict(values, x=feeds["x"])
        for call, inputs, outputs, attributes in steps:
            results = call(*(held[name] for name in inputs), **attributes)
            held.update(zip(outputs, results if isinstance(results, tuple) else (results,), strict=False))
        F.cross_entropy(held["y"], feeds["labels"]).backward()

    def step() -> None:
        backward()
        optimizer.step()

    if gradients:
        backward()
        np.savez(gradients, **{name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None})
        os.sync()
    return step
