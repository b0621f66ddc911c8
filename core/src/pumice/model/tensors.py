"""Weights on disk and in memory: reading them in bounded pieces, mapping external files, judging what they hold.

A tensor of a loaded model is one of three things, none of which needs its file by name any more: a NumPy array taken
out of the protobuf, an array that is a window of a read-only memory map (external data: the pages are the operating
system's, and the map outlives a file that is renamed over or removed), or a packed window for types under 8 bits.
Every size is computed from the declared shape and compared with the bytes that are there *before* anything is
allocated.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from pumice.errors import ModelError

CHUNK = 1 << 24
"""Bytes read at a time when a whole tensor is scanned or written."""

DENSE_LIMIT = 1 << 30
"""Bytes up to which a sparse initializer is made dense."""


def chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """The tensor's bytes as ONNX stores them (little-endian, packed), in pieces of at most `CHUNK` bytes."""
    if tensor.dtype.bitwidth < 8:
        whole = memoryview(tensor.tobytes())
        yield from (whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK))
        return
    flat = np.asarray(tensor.numpy()).reshape(-1)
    step = max(1, CHUNK // flat.itemsize)
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        little = piece.astype(piece.dtype.newbyteorder("<"), copy=False)
        yield np.ascontiguousarray(little).view(np.uint8).data


def not_finite(tensor: ir.TensorProtocol) -> tuple[int, int]:
    """How many NaN and how many infinite items a tensor holds; (0, 0) for types that have neither."""
    if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 8:
        return 0, 0
    nan = infinite = 0
    flat = np.asarray(tensor.numpy()).reshape(-1)
    step = CHUNK // flat.itemsize
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        if not np.isfinite(piece).all():
            nan += int(np.isnan(piece).sum())
            infinite += int(np.isinf(piece).sum())
    return nan, infinite


def replace_tensors(graph: ir.Graph, change: Callable[[str, ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `change(name, tensor)` in the place of every initializer and tensor attribute, bodies included.

    The name of an attribute's tensor is the node's output it feeds (`Constant`) or `node.attribute`.
    """
    for scope in (graph, *graph.subgraphs()):
        for value in scope.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.name or "", value.const_value)
        for node in scope:
            for attr in tuple(node.attributes.values()):
                if not attr.is_ref() and attr.type == ir.AttributeType.TENSOR:
                    held = attr.as_tensor()
                    changed = change(_attribute_tensor_name(node, attr.name), held)
                    if changed is not held:
                        node.attributes[attr.name] = ir.AttrTensor(attr.name, changed, doc_string=attr.doc_string)


def _attribute_tensor_name(node: ir.Node, attribute: str) -> str:
    return str(node.outputs[0].name) if node.op_type == "Constant" else f"{node.name}.{attribute}"


def materializer(model: Path, files: set[Path]) -> Callable[[str, ir.TensorProtocol], ir.TensorProtocol]:
    """A function for `replace_tensors` that detaches a tensor from the protobuf, or maps its external data.

    The data files that it maps go into `files`, with all links resolved.
    Names of data files are relative to the folder of the model's path. Where path and data are links, as in a cache of
    downloads, the data may also lie beside what the path links to.

    Raises:
        ModelError: (from the returned function) the external data is missing, too short, of another size than the
            shape says, or outside the model's folder.
    """
    roots = model.parent.resolve(), model.resolve().parent

    @functools.cache
    def map_once(path: Path) -> mmap.mmap:
        files.add(path)
        return _map_file(path)

    def detach(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor):
            return _mapped(name, tensor, roots, map_once)
        return detached(name, tensor)

    return detach


def detached(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor as an array of its own: a view of a protobuf would build a new array at each question."""
    if not isinstance(tensor, ir.TensorProtoTensor):
        return tensor
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(tensor.tobytes(), dtype=np.uint8)
        return ir.PackedTensor(packed, tensor.dtype, shape=tensor.shape.numpy(), name=name)
    return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=name)


def _mapped(
    name: str, tensor: ir.ExternalTensor, roots: tuple[Path, ...], map_once: Callable[[Path], mmap.mmap]
) -> ir.TensorProtocol:
    location = str(tensor.location)
    path = (roots[0] / location).resolve()
    if Path(location).is_absolute() or not any(root in path.parents for root in roots):
        raise ModelError(
            f"tensor '{name}' keeps its data in '{location}', outside the model's folder '{roots[0]}': put the data "
            "file next to the model and refer to it by its bare name"
        )
    _check_dims(name, tuple(tensor.shape.numpy()))
    offset, needed = tensor.offset or 0, tensor.nbytes
    if tensor.length is not None and tensor.length != needed:
        raise ModelError(
            f"tensor '{name}' of shape {list(tensor.shape.numpy())} needs {needed} bytes but the model says that "
            f"{tensor.length} are stored: export the model again"
        )
    if needed == 0:
        return ir.Tensor(np.empty(tensor.shape.numpy(), tensor.dtype.numpy()), dtype=tensor.dtype, name=name)
    try:
        mapped = map_once(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(
            f"external data file '{path}' of tensor '{name}' cannot be read "
            f"({getattr(error, 'strerror', None) or error}): copy it next to the model"
        ) from error
    if offset < 0 or offset + needed > len(mapped):
        raise ModelError(
            f"external data file '{path}' is {len(mapped)} bytes long but tensor '{name}' needs bytes {offset} to "
            f"{offset + needed}: the file is truncated, copy it again"
        )
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(mapped, np.uint8, needed, offset)
        return ir.PackedTensor(packed, tensor.dtype, shape=tensor.shape, name=name)
    stored: np.dtype[Any] = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
    array = np.frombuffer(mapped, stored, tensor.size, offset).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, name=name)


def _map_file(path: Path) -> mmap.mmap:
    if path.exists() and not path.is_file():
        raise ValueError("it is not an ordinary file")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_stored_size(proto: onnx.TensorProto) -> None:
    """Refuse a tensor whose shape and data disagree, without allocating what the shape promises."""
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        _check_place(proto)
        return
    _check_dims(proto.name, tuple(proto.dims))
    if proto.data_type == onnx.TensorProto.UNDEFINED or proto.data_type not in set(ir.DataType):
        raise ModelError(f"tensor '{proto.name}' has the unknown data type {proto.data_type}: export the model again")
    dtype = ir.DataType(proto.data_type)
    items = math.prod(proto.dims)
    if dtype == ir.DataType.STRING:
        needed, present, unit = items, len(proto.string_data), "items"
    elif proto.HasField("raw_data"):
        needed, present, unit = math.ceil(items * dtype.bitwidth / 8), len(proto.raw_data), "bytes"
    else:
        needed, present, unit = *_typed_items(proto, dtype, items), "items"
    if needed != present:
        raise ModelError(
            f"tensor '{proto.name}' of shape {list(proto.dims)} needs {needed} {unit} but holds {present}: "
            "the file is damaged, export the model again"
        )


def _check_place(proto: onnx.TensorProto) -> None:
    for entry in proto.external_data:
        if entry.key in ("offset", "length") and not (entry.value.isascii() and entry.value.isdigit()):
            raise ModelError(
                f"tensor '{proto.name}' keeps its data at the {entry.key} '{entry.value}', which is no number of "
                "bytes: export the model again"
            )


def _typed_items(proto: onnx.TensorProto, dtype: ir.DataType, items: int) -> tuple[int, int]:
    present = sum(
        len(field) for field in (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data,
                                 proto.uint64_data)
    )  # fmt: skip
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * items, present
    return math.ceil(items * min(dtype.bitwidth, 8) / 8), present


def _check_dims(name: str, dims: tuple[int, ...]) -> None:
    if any(d < 0 for d in dims):
        raise ModelError(f"tensor '{name}' has the impossible shape {list(dims)}: export the model again")


def to_dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The dense form of a sparse tensor (linear or coordinate indices).

    Raises:
        ModelError: the dense form would exceed `DENSE_LIMIT` bytes, or the indices are not inside the shape.
    """
    name, dims = sparse.values.name, tuple(sparse.dims)
    check_stored_size(sparse.values)
    check_stored_size(sparse.indices)
    _check_dims(name, dims)
    needed = math.ceil(math.prod(dims) * ir.DataType(sparse.values.data_type).bitwidth / 8)
    if needed > DENSE_LIMIT:
        raise ModelError(
            f"sparse tensor '{name}' of shape {list(dims)} would take {needed} bytes when made dense: "
            "export the model with dense weights of a reasonable size"
        )
    values = onnx.numpy_helper.to_array(sparse.values)
    indices: NDArray[Any] = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(dims, values.dtype)
    try:
        where = np.unravel_index(indices, dims) if indices.ndim == 1 else tuple(indices.T)
        dense[where] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"sparse tensor '{name}' has indices outside its shape {list(dims)}") from error
    return onnx.numpy_helper.from_array(dense, name)
