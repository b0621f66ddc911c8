"""What an `InferenceSession` is given: the path of the file, or bytes, with the wanted values as graph outputs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pumice.errors import ModelError, nearest

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


@attrs.frozen(kw_only=True)
class ModelSource:
    """A model as onnxruntime takes it."""

    model: str | bytes
    label: str
    """Names the model in errors."""
    data_folder: str | None = None
    """Where the external data of serialised bytes lies."""


@contextmanager
def source_of(model: ir.Model | Path | str, outputs: Sequence[str] | None) -> Iterator[ModelSource]:
    """The source for a session; temporary files live as long as the context.

    Raises:
        ModelError: the file is missing or damaged, or a wanted value does not exist.
    """
    if isinstance(model, str | Path):
        yield _of_file(Path(model), outputs)
        return
    from pumice.model import save, size
    from pumice.model.saving import EXTERNAL_ABOVE

    label = f"model '{model.graph.name}'" if model.graph.name else "the model"
    if size(model).total <= EXTERNAL_ABOVE:
        yield ModelSource(model=_with_outputs(_serialisable(model), outputs, label).SerializeToString(), label=label)
        return
    with tempfile.TemporaryDirectory(prefix="pumice-") as folder:
        path = Path(folder, "model.onnx")
        save(model, path, external_data=True)
        yield attrs.evolve(_of_file(path, outputs), label=label)


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """Operators of a graph and of its subgraphs, counted."""
    found: Counter[str] = Counter()
    for node in graph.node:
        found[node.op_type] += 1
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                found += operators(inner)
    return found


def _of_file(path: Path, outputs: Sequence[str] | None) -> ModelSource:
    if not path.is_file():
        raise ModelError(f"there is no model file '{path}': check the path")
    label = f"'{path}'"
    if outputs is None:
        return ModelSource(model=str(path), label=label)
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises classes of its own
        raise ModelError(f"'{path}' cannot be read as an ONNX model: export it again") from error
    return ModelSource(
        model=_with_outputs(proto, outputs, label).SerializeToString(),
        label=label,
        data_folder=str(path.resolve().parent),
    )


def _serialisable(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf with all weights inside, in the oldest file format that can hold it."""
    import onnx_ir as ir

    from pumice.model import clone
    from pumice.model.opset import ir_version_for
    from pumice.model.tensors import replace_tensors

    def inside(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)

    written = clone(model)
    replace_tensors(written.graph, inside)
    written.ir_version = ir_version_for(model)
    return ir.to_proto(written)


def _with_outputs(proto: onnx.ModelProto, outputs: Sequence[str] | None, label: str) -> onnx.ModelProto:
    """The model with exactly these values as graph outputs, in this order."""
    if outputs is None:
        return proto
    import onnx

    graph = proto.graph
    declared = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    known = {*declared, *(t.name for t in graph.initializer), *(n for node in graph.node for n in node.output if n)}
    for name in outputs:
        if name not in known:
            raise ModelError(f"{label} has no value '{name}'{nearest(name, known)}")
    wanted = [
        onnx.ValueInfoProto.FromString(declared[name].SerializeToString())
        if name in declared
        else onnx.ValueInfoProto(name=name)
        for name in outputs
    ]
    del graph.output[:]
    graph.output.extend(wanted)
    return proto
