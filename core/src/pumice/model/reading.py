"""From a file to a protobuf that is safe to build a graph from.

What is refused here is what could not be refused later: `onnx_ir` drops sparse initializers and training graphs,
keeps the last of two values with one name, and trusts sizes. Each refusal is one sentence naming the file, the tensor
or the value, and what to do.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pumice.errors import ModelError
from pumice.ledger import Ledger
from pumice.model.tensors import check_stored_size, to_dense

NEWEST_OPSET = 26
"""The newest opset of the default domain that pumice works with (what deployed runtimes accept)."""


def read(path: Path, ledger: Ledger) -> onnx.ModelProto:
    """The file as a `ModelProto`, with sparse tensors made dense. External data is not touched.

    Raises:
        ModelError: no such file, not ONNX, damaged, or a feature that pumice does not carry.
    """
    proto = _parse(path)
    try:
        _check_header(proto)
        _drop_training(proto, ledger)
        for graph in graphs(proto.graph):
            _densify(graph, ledger)
        for tensor in _tensors(proto):
            check_stored_size(tensor)
        for graph in graphs(proto.graph):
            _check_names(graph)
        _name_nodes(proto.graph)
    except ModelError as error:
        raise ModelError(f"'{path}': {' '.join(str(error).split())}") from error
    return proto


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every control-flow body in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: name the .onnx file inside it")
    if path.exists() and not path.is_file():
        raise ModelError(f"'{path}' is a pipe or a device: copy the model to an ordinary file")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if not start:
                raise ModelError(f"'{path}' is empty: export or copy the model again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                proto = onnx.ModelProto()
                proto.ParseFromString(view)
    except FileNotFoundError as error:
        raise ModelError(f"'{path}' does not exist: check the path of the model") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read ({error.strerror}): check its permissions") from error
    except DecodeError as error:
        raise ModelError(_not_onnx(path, start)) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output or proto.graph.input):
        raise ModelError(_not_onnx(path, start))
    return proto


def _not_onnx(path: Path, start: bytes) -> str:
    if path.stat().st_size > 2**31 - 1:
        return f"'{path}' is larger than the 2 GB that ONNX allows in one file: export it with external data"
    return (
        f"'{path}' is not a readable ONNX model (it begins with {start!r}): it is another kind of file, or it was "
        "truncated or damaged; export or copy it again"
    )


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.graph.output:
        raise ModelError("the graph has no outputs: export the model with at least one")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is not None and not 1 <= opset <= NEWEST_OPSET:
        raise ModelError(
            f"the model uses opset {opset} but pumice and the runtimes it targets know 1 to {NEWEST_OPSET}: "
            "export it with opset 21"
        )


def _drop_training(proto: onnx.ModelProto, ledger: Ledger) -> None:
    if proto.training_info:
        ledger.note("load", f"{len(proto.training_info)} training graphs in the file were dropped: inference only")
        del proto.training_info[:]


def _densify(graph: onnx.GraphProto, ledger: Ledger) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(to_dense(sparse))
        ledger.note("load", f"sparse initializer '{sparse.values.name}' was made dense")
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                dense = to_dense(attribute.sparse_tensor)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
                ledger.note("load", f"the sparse constant '{node.output[0]}' was made dense")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    bodies = list(graphs(proto.graph))
    for graph in bodies:
        yield from graph.initializer
    for owner in (*bodies, *proto.functions):
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("t") or attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def _check_names(graph: onnx.GraphProto) -> None:
    """Every value is defined once in its graph. (A body that shadows an outer name is renamed after loading.)"""
    defined: dict[str, str] = {}

    def define(name: str, what: str) -> None:
        if not name:
            raise ModelError(f"{what} has no name: export the model again")
        if name in defined:
            raise ModelError(
                f"the value '{name}' is defined twice, by {defined[name]} and by {what}: names must be unique, "
                "export the model again"
            )
        defined[name] = what

    for value in graph.input:
        define(value.name, "a graph input")
    inputs = set(defined)
    seen: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in seen or tensor.name not in inputs:
            define(tensor.name, "an initializer")
        seen.add(tensor.name)
    for node in graph.node:
        for name in filter(None, node.output):
            define(name, f"node '{node.name}' ({node.op_type})")


def _name_nodes(main: onnx.GraphProto) -> None:
    """Nodes without a name are called after their operator, numbered in the order of the file: `Conv_0`, `Conv_1`."""
    taken = {node.name for graph in graphs(main) for node in graph.node}
    count: Counter[str] = Counter()
    for graph in graphs(main):
        for node in graph.node:
            if not node.name:
                name = f"{node.op_type}_{count[node.op_type]}"
                while name in taken:
                    count[node.op_type] += 1
                    name = f"{node.op_type}_{count[node.op_type]}"
                node.name = name
                taken.add(name)
                count[node.op_type] += 1
