"""Saving: the file is either the old one, whole, or the new one, whole and checked.

Everything is written under a temporary name in the target's folder, flushed to the disk, checked by ONNX's checker,
and renamed. External data lies in a file whose name carries the hash of its content, so the new data never overwrites
the data of the old model: the rename of the model file alone switches from one to the other, and only then is the old
data removed. The bytes are a function of the model's content: nodes in graph order, protobuf maps sorted, the oldest
file format version that can carry the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from pumice.errors import ModelError, PumiceError
from pumice.model.graph import clone, nodes
from pumice.model.loading import DATA_FILES
from pumice.model.opset import ir_version_for
from pumice.model.tensors import chunks, replace_tensors
from pumice.model.weights import size

EXTERNAL_ABOVE = 1_800_000_000
"""Weight bytes above which the weights go to a file of their own; protobuf ends at 2 GB."""

INLINE_BELOW = 1024
"""Bytes below which a tensor stays in the model file even then: shapes and axes are read by tools that read no data."""

ALIGNMENT = 64
"""External tensors start at multiples of it, so that runtimes may use them where they are mapped."""


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write the model; `external_data` forces (True) or forbids (False) a separate weight file, None decides by size.

    Raises:
        ModelError: the model does not pass ONNX's checker, or is too large for `external_data=False`.
        PumiceError: the file cannot be written, or is one that the model's weights were read from; the old file is
            whole and no temporary file is left.
    """
    target = Path(path).resolve()
    if target in model.meta.get(DATA_FILES, ()):
        raise PumiceError(f"'{path}' holds the weights of the model that was read: choose another name for the result")
    weight_bytes = size(model).total
    if external_data is False and weight_bytes > EXTERNAL_ABOVE:
        raise ModelError(
            f"'{path}' would hold {weight_bytes} bytes of weights, too many for one file: allow external data"
        )
    external = weight_bytes > EXTERNAL_ABOVE if external_data is None else external_data
    written = clone(model)  # `to_proto` and the externalising below write on it
    written.ir_version = ir_version_for(model)
    _leave_out_derivable_types(written)
    try:
        if external:
            _save_external(written, target)
        else:
            _save_whole(written, target)
    except OSError as error:
        raise PumiceError(
            f"'{path}' cannot be written ({error.strerror or error}): nothing was changed, choose a writable folder "
            "with enough space"
        ) from error


def _leave_out_derivable_types(model: ir.Model) -> None:
    """Types and shapes that every reader knows: those of initializers, and those inside the graph, which are inferred
    (operators of other domains need theirs stated).
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if not value.is_graph_input():
                value.type, value.shape = None, None
    if any(node.domain not in ("", "ai.onnx") for node in nodes(model)):
        return
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None


def _save_whole(model: ir.Model, target: Path) -> None:
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    _validate(content)
    with _replacing(target) as file:
        file.write(content)
    _remove_stale_data(target, keep=None)


def _save_external(model: ir.Model, target: Path) -> None:
    data, created = _write_data(model, target)
    try:
        with _replacing(target) as file:
            file.write(ir.to_proto(model).SerializeToString(deterministic=True))
            file.flush()
            _validate(file.name)
    except BaseException:
        if created:
            data.unlink(missing_ok=True)
        raise
    _remove_stale_data(target, keep=data)


def _write_data(model: ir.Model, target: Path) -> tuple[Path, bool]:
    """Write the large tensors beside `target` and let the model refer to them; also: is the file a new one."""
    digest = hashlib.sha256()

    def write(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.nbytes < INLINE_BELOW or isinstance(tensor, ir.StringTensor):
            return tensor
        file.write(bytes(-file.tell() % ALIGNMENT))
        offset = file.tell()
        for piece in chunks(tensor):
            file.write(piece)
            digest.update(piece)
        return ir.ExternalTensor(
            _PENDING, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )

    with _temporary(target) as file:
        replace_tensors(model.graph, write)
        _flush(file)
        data = target.with_name(f"{target.name}.{digest.hexdigest()[:16]}.data")
        created = not data.exists()
        Path(file.name).replace(data)

    def settle(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == _PENDING:
            return ir.ExternalTensor(
                data.name, tensor.offset, tensor.length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        return tensor

    replace_tensors(model.graph, settle)
    return data, created


_PENDING = "pumice-pending"


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `target` when the block ends well, and vanishes when it does not."""
    with _temporary(target) as file:
        yield file
        _flush(file)
        Path(file.name).replace(target)
    _flush_folder(target.parent)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A new file in the target's folder, under a name of its own; whatever still bears that name later is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename durable, where the system can flush a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _validate(model: bytes | str) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        complaint = " ".join(str(error).split())
        raise ModelError(f"the model was not saved: it does not pass ONNX's checker ({complaint})") from error


def _remove_stale_data(target: Path, keep: Path | None) -> None:
    """Remove data files that earlier saves under this name left; maps of them stay valid until they are closed."""
    ours = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.data")
    for path in target.parent.iterdir():
        if ours.fullmatch(path.name) and path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
