"""What the native runtime is compared on: graphs of the real shapes with random weights, which is right for speed.

Quantized files are onnxruntime's own: static QDQ with u8 activations and s8 weights per channel for CNNs, dynamic for
transformers and LSTMs. With four bits we have a codebook of 16 values and a scale a column, onnxruntime its
MatMulNBits in blocks of 32.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import attrs
import numpy as np
from models import networks
from peers.cache import quantized
from peers.stock_onnxruntime import LINEAR, Variant

STATIC = Variant(id="ort static", mode="static")
DYNAMIC = Variant(id="ort dynamic", mode="dynamic", operators=LINEAR[1:])
LSTM = Variant(id="ort dynamic", mode="dynamic", operators=("LSTM",))
SIDE = 224
CALIBRATION = 4
"""Feeds that static quantization sees."""
Feed = dict[str, np.ndarray]


@attrs.frozen(kw_only=True)
class Files:
    """One network as everybody runs it."""

    real: Path
    """The float model, of which a peer with a quantizer makes its own."""
    ours: Path
    theirs: Path
    """onnxruntime's: the same file, but for codebooks."""


@attrs.frozen(kw_only=True)
class Compared:
    """One network, how it is quantized and what is fed."""

    id: str
    build: Callable[[Path], Path]
    feed: Callable[[np.random.Generator], Feed]
    quantize: Variant | str | None = None
    """A configuration of onnxruntime's quantizer, "codebook", or None for the float model."""
    target: float = 1.0
    mode: str = "exact"
    quick: bool = False


def _image(rng: np.random.Generator) -> Feed:
    return {"x": rng.standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)}


def _tokens(count: int) -> Callable[[np.random.Generator], Feed]:
    return lambda rng: {"x": rng.integers(0, 1000, (1, count))}


def _sequence(batch: int) -> Callable[[np.random.Generator], Feed]:
    return lambda rng: {"x": rng.standard_normal((batch, 50, 256)).astype(np.float32)}


def _resnet50(path: Path) -> Path:
    return networks.resnet50(path)


def _half_resnet50(path: Path) -> Path:
    return networks.resnet50(path, base=32)


def _mobilenet(path: Path) -> Path:
    return networks.inverted_residuals(path, networks.MOBILENET_V2)


def _lite0(path: Path) -> Path:
    return networks.inverted_residuals(path, networks.EFFICIENTNET_LITE0)


def _minilm(path: Path) -> Path:
    return networks.bert(path, width=384, layers=6)


_CNN = {"feed": _image, "quantize": STATIC}
_FEW = {"build": networks.bert, "quantize": "codebook", "target": 1.5, "mode": "fast"}
_STATES = {"build": networks.states, "quantize": LSTM, "mode": "fast"}
_LONG = {"feed": _tokens(128), "quantize": DYNAMIC, "target": 1.25, "mode": "fast"}
CASES = (
    Compared(id="resnet50 int8", build=_resnet50, target=1.1, **_CNN),
    Compared(id="mobilenetv2 int8", build=_mobilenet, target=1.35, quick=True, **_CNN),
    Compared(id="efficientnet-lite0 int8", build=_lite0, target=1.35, **_CNN),
    Compared(id="half resnet50 int8", build=_half_resnet50, target=1.1, **_CNN),
    Compared(id="bert-base int8", build=networks.bert, **_LONG),
    Compared(id="minilm int8", build=_minilm, quick=True, **_LONG),
    Compared(id="bert-base int4 1 token", feed=_tokens(1), **_FEW),
    Compared(id="bert-base int4 16 tokens", feed=_tokens(16), **_FEW),
    Compared(id="lstm int8 batch 1", feed=_sequence(1), target=1.5, quick=True, **_STATES),
    Compared(id="lstm int8 batch 32", feed=_sequence(32), target=1.3, **_STATES),
    Compared(id="lstm float batch 1", build=networks.states, feed=_sequence(1)),
    Compared(id="resnet50 float", build=_resnet50, feed=_image),
    Compared(id="mobilenetv2 float", build=_mobilenet, feed=_image, quick=True),
    Compared(id="efficientnet-lite0 float", build=_lite0, feed=_image),
    Compared(id="bert-base float", build=networks.bert, feed=_tokens(128)),
    Compared(id="minilm float", build=_minilm, feed=_tokens(128), quick=True),
)


def case(name: str) -> Compared:
    """The case of this name."""
    return next(case for case in CASES if case.id == name)


def files(case: Compared, folder: Path) -> Files:
    """The models of a case, made in the folder or kept in the cache."""
    rng = np.random.default_rng(1)
    path = case.build(folder / f"{case.id}.onnx")
    if isinstance(case.quantize, Variant):
        made = quantized(case.quantize, path, [case.feed(rng) for _ in range(CALIBRATION)])
        if made.error:
            raise RuntimeError(made.error)
        return Files(real=path, ours=made.path, theirs=made.path)
    if case.quantize:
        return Files(real=path, ours=_codebooks(path, folder), theirs=_blocks_of_32(path, folder))
    return Files(real=path, ours=path, theirs=path)


def _codebooks(path: Path, folder: Path) -> Path:
    """Every matrix as Transpose(Gather(table, codes) * scale), the table that of normally distributed values."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    table = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)], np.float32)
    nodes: list[Any] = []
    added = {"codebook": table}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.input[1]
            rows = numpy_helper.to_array(stored.pop(name)).T
            scale = rows.std(axis=1, keepdims=True)
            edges = (table[1:] + table[:-1]) / 2
            added |= {f"{name}.codes": np.searchsorted(edges, rows / scale).astype(np.int32), f"{name}.scale": scale}
            nodes.append(helper.make_node("Gather", ["codebook", f"{name}.codes"], [f"{name}.looked_up"]))
            nodes.append(helper.make_node("Mul", [f"{name}.looked_up", f"{name}.scale"], [f"{name}.rows"]))
            nodes.append(helper.make_node("Transpose", [f"{name}.rows"], [name], perm=[1, 0]))
        nodes.append(node)
    kept = [*stored.values(), *(numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in added.items())]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, folder / "codebooks.onnx")
    return folder / "codebooks.onnx"


def _blocks_of_32(path: Path, folder: Path) -> Path:
    """Products with 8-bit activations (accuracy level 4)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    target = folder / "blocks.onnx"
    quantizer.model.save_model_to_file(str(target))
    return target
