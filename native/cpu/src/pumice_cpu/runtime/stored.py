"""A compiled program in a file, mapped back without reading a model.

    magic, bytes of the header, bytes of the file     24 bytes
    header                                            JSON: what build and level it is for, places, instructions, names
    data                                              arrays and packed weights, each on a multiple of 64 bytes

Packed weights are used where the file is mapped; those of few kinds are packed as they are opened. A file is bound to
the library that wrote it: any other build refuses it, since it would read packed weights in another order.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from pumice.errors import DataError, ModelError, nearest
from pumice.ops.record import Array, Node
from pumice.program import HAS_GRAPHS, Step
from pumice_cpu.native import NativeError, ffi, library
from pumice_cpu.runtime import packing
from pumice_cpu.runtime.build import build
from pumice_cpu.runtime.compiled import Compiled, Timed, describe
from pumice_cpu.runtime.compiler import REFERENCE, Instruction
from pumice_cpu.runtime.executable import assemble
from pumice_cpu.runtime.packing import Packed
from pumice_cpu.runtime.views import Root, View, address

MAGIC = b"PUMICEN\n"
LEAD = 24
LINE = 64
IMAGES = {"conv_u8": 0, "nhwc": 1, "matrix": 2}
"""Packed weights that are used where the file is mapped: `enum pumice_image`."""


def is_stored(path: Path) -> bool:
    """Whether a file begins as one of these."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


# --- writing ----------------------------------------------------------------------------------------------------------


def save(compiled: Compiled, path: Path) -> None:
    """Write a program.

    Raises:
        NativeError: a reference kernel is part of it that has graphs or text of its own.
    """
    for instruction in compiled.executable.instructions:
        if instruction.step is not None and not _can_be_stored(instruction):
            raise NativeError(
                f"the program cannot be stored: {instruction.op} runs on a reference kernel with graphs or text of its "
                "own, which no file holds; open the model itself instead"
            )
    writer = _Writer()
    header = json.dumps(writer.header(compiled)).encode()
    data = bytes(writer.data)
    begin = _up(LEAD + len(header))
    work = path.with_name(f".{os.getpid()}-{path.name}")
    with work.open("wb") as file:
        file.write(MAGIC + len(header).to_bytes(8, "little") + (begin + len(data)).to_bytes(8, "little"))
        file.write(header + b" " * (begin - LEAD - len(header)))
        file.write(data)
    work.replace(path)


def _can_be_stored(instruction: Instruction) -> bool:
    step, constants = instruction.step, instruction.fields["constants"].values()
    assert step is not None
    plain = all(isinstance(value, np.ndarray) and value.dtype != object for value in constants)
    return plain and not step.captures and not step.node.attributes.get(HAS_GRAPHS)


def _up(count: int) -> int:
    return -(-count // LINE) * LINE


class _Writer:
    """Collects the data as the header is made."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.roots: dict[Root, int] = {}
        self.packed: dict[int, int] = {}
        self.parcels: list[dict[str, Any]] = []

    def header(self, compiled: Compiled) -> dict[str, Any]:
        executable = compiled.executable
        inputs = {
            name: [slot, None if view is None else self._place(view)] for name, (slot, view) in compiled.inputs.items()
        }
        outputs = {name: self._output(where) for name, where in compiled.outputs.items()}
        instructions = [self._instruction(i) for i in executable.instructions]
        roots = [
            [
                root.home,
                root.nbytes,
                self._array(root.memory) if root.home == "constant" else executable.offsets.get(root),
            ]
            for root in self.roots
        ]
        return {
            "build": build(), "inputs": inputs, "outputs": outputs, "instructions": instructions, "roots": roots,
            "packed": self.parcels, "arena": executable.arena_bytes, "signatures": list(compiled.signatures),
        }  # fmt: skip

    def _output(self, where: View | Array | int) -> dict[str, Any]:
        if isinstance(where, View):
            return self._place(where)
        return {"slot": where} if isinstance(where, int) else {"constant": self._array(np.asarray(where))}

    def _instruction(self, i: Instruction) -> list[Any]:
        if i.step is None:
            return [
                i.kind,
                [None if v is None else self._at(v) for v in i.operands],
                self._value(i.fields),
                i.node,
                i.op,
            ]
        node, step = i.step.node, i.step
        constants = [[slot, self._array(value)] for slot, value in i.fields["constants"].items()]
        described = {
            "node": {
                "op_type": node.op_type, "domain": node.domain, "name": node.name, "opset": node.opset,
                "outputs": list(node.outputs), "attributes": self._value(node.attributes),
            },
            "inputs": step.inputs, "outputs": step.outputs, "constants": constants, "read": i.fields["read"],
            "written": i.fields["written"],
        }  # fmt: skip
        views = [v for v in i.operands if v is not None]
        return [
            i.kind,
            [[*self._at(v), v.shape, v.dtype.name, v.array.strides] for v in views],
            described,
            i.node,
            i.op,
        ]

    def _at(self, view: View) -> list[int]:
        return [self.roots.setdefault(view.root, len(self.roots)), view.offset]

    def _place(self, view: View) -> dict[str, Any]:
        return {"root": self._at(view)[0], "shape": list(view.shape), "dtype": view.dtype.name}

    def _array(self, array: Array) -> dict[str, Any]:
        array = np.ascontiguousarray(array).reshape(array.shape)
        return {"at": self._bytes(array.tobytes()), "shape": list(array.shape), "dtype": array.dtype.name}

    def _bytes(self, data: bytes) -> int:
        self.data.extend(b"\0" * (_up(len(self.data)) - len(self.data)))
        self.data.extend(data)
        return len(self.data) - len(data)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._value(v) for name, v in value.items()}
        if isinstance(value, np.ndarray):
            return {"array": self._array(value)}
        if isinstance(value, Packed):
            return {"packed": self._packed(value)}
        return value.item() if isinstance(value, np.generic) else value

    def _packed(self, packed: Packed) -> int:
        if id(packed) not in self.packed:
            self.packed[id(packed)] = len(self.parcels)
            self.parcels.append(self._parcel(packed))
        return self.packed[id(packed)]

    def _parcel(self, packed: Packed) -> dict[str, Any]:
        if packed.kind not in IMAGES:
            return {"kind": packed.kind, "arguments": [self._value(argument) for argument in packed.arguments]}
        count = int(library().pumice_image_bytes(IMAGES[packed.kind], packed.handle))
        image = np.empty(count, np.uint8)
        library().pumice_image_write(IMAGES[packed.kind], packed.handle, ffi().from_buffer(image))
        return {"kind": packed.kind, "image": self._bytes(image.tobytes()), "bytes": count}


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> Compiled:
    """Map a program.

    Raises:
        ModelError: the file is truncated, foreign, or of another build or processor.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < LEAD:
            raise _damaged(path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length, whole = (int.from_bytes(mapped[at : at + 8], "little") for at in (8, 16))
    if mapped[: len(MAGIC)] != MAGIC:
        raise ModelError(f"'{path}' is no program of the native runtime: give a model, or a file that a session saved")
    if whole != size or LEAD + length > size:
        raise _damaged(path)
    try:
        header = json.loads(mapped[LEAD : LEAD + length])
        if header["build"] != build():
            raise ModelError(
                f"'{path}' was compiled by another build of pumice-cpu or for another processor "
                f"({header['build']}, here {build()}): compile the model again"
            )
        return _Reader(np.frombuffer(mapped, np.uint8), _up(LEAD + length), header).compiled()
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ModelError:
    return ModelError(f"'{path}' is damaged or was not written whole: compile the model again")


class _Reader:
    """Makes of a header what the writer made it from."""

    def __init__(self, mapped: Array, begin: int, header: Mapping[str, Any]) -> None:
        self.mapped, self.begin, self.header = mapped, begin, header
        self.roots = [self._root(*found) for found in header["roots"]]
        self.packed = [self._unpacked(parcel) for parcel in header["packed"]]

    def compiled(self) -> Compiled:
        header = self.header
        instructions = [self._instruction(*found) for found in header["instructions"]]
        offsets = {
            root: place for root, (home, _, place) in zip(self.roots, header["roots"], strict=True) if home == "arena"
        }
        executable = assemble(instructions, (offsets, header["arena"]))
        inputs = {name: (slot, None if p is None else self._whole(p)) for name, (slot, p) in header["inputs"].items()}
        outputs = {name: self._output(found) for name, found in header["outputs"].items()}
        return Compiled(executable, inputs, outputs, tuple(header["signatures"]))

    def _output(self, found: Mapping[str, Any]) -> View | Array | int:
        if "slot" in found:
            return int(found["slot"])
        return self._array(found["constant"]) if "constant" in found else self._whole(found)

    def _instruction(
        self, kind: str, operands: list[Any], fields: Mapping[str, Any], node: str, op: str
    ) -> Instruction:
        if kind != REFERENCE:
            views = tuple(None if at is None else self._view(at) for at in operands)
            return Instruction(kind, views, (0,), self._value(fields), node, op)
        views = tuple(
            View(self.roots[root], np.ndarray(shape, dtype, self.roots[root].memory, offset, strides))
            for root, offset, shape, dtype, strides in operands
        )
        constants = {slot: self._array(found) for slot, found in fields["constants"]}
        kept = {"written": tuple(fields["written"]), "read": tuple(fields["read"]), "constants": constants}
        writes = tuple(range(len(fields["written"])))
        return Instruction(kind, views, writes, kept, node, op, step=self._step(fields, constants))

    def _step(self, fields: Mapping[str, Any], constants: Mapping[int, Array]) -> Step:
        """A node with the kernel that a plan would choose for it."""
        from pumice.dispatch import implementation
        from pumice.registry import registry

        found, installed = fields["node"], registry()
        node = Node(**{**found, "outputs": tuple(found["outputs"]), "attributes": self._value(found["attributes"])})
        usable = [k for k in installed.kernels if k.device == "cpu" and k.available() is None]
        inputs = tuple(fields["inputs"])
        op, call = implementation(
            node, [constants.get(slot) for slot in inputs], installed.ops, sorted(usable, key=lambda k: -k.rank)
        )
        return Step(node, op, call, inputs, tuple(fields["outputs"]))

    def _root(self, home: Any, nbytes: int, place: Any) -> Root:
        memory = self._array(place) if home == "constant" else np.empty(nbytes, np.uint8)
        return Root(memory, home)

    def _view(self, at: list[int]) -> View:
        root = self.roots[at[0]]
        return View(root, np.ndarray(0, np.uint8, root.memory, at[1])) if at[1] else View(root, root.memory)

    def _whole(self, place: Mapping[str, Any]) -> View:
        root = self.roots[place["root"]]
        return View(root, np.ndarray(place["shape"], place["dtype"], root.memory))

    def _bytes(self, at: int, count: int) -> Array:
        first = self.begin + at
        if first + count > self.mapped.size:
            raise ValueError("beyond the end")
        return self.mapped[first : first + count]

    def _array(self, found: Mapping[str, Any]) -> Array:
        dtype = np.dtype(found["dtype"])
        count = int(np.prod(found["shape"], dtype=np.int64)) * dtype.itemsize
        array: Array = self._bytes(found["at"], count).view(dtype).reshape(found["shape"])
        return array

    def _value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return self._array(value["array"])
        if "packed" in value:
            return self.packed[value["packed"]]
        return {name: self._value(v) for name, v in value.items()}

    def _unpacked(self, parcel: Mapping[str, Any]) -> Packed:
        kind = parcel["kind"]
        if "arguments" in parcel:
            made: Packed = getattr(packing, kind)(*(self._value(argument) for argument in parcel["arguments"]))
            return made
        image = self._bytes(parcel["image"], parcel["bytes"])
        handle = library().pumice_image_map(IMAGES[kind], ffi().cast("void *", address(image)), image.size)
        if handle == ffi().NULL:
            raise ValueError("no packed weights")
        return Packed(ffi().gc(handle, library().pumice_image_unmap), kind, (), alive=self.mapped)


@attrs.frozen(eq=False)
class StoredSession:
    """A program from a file, for the shapes it was compiled for; threads may share it."""

    compiled: Compiled
    threads: int | None
    label: str

    def run(self, feeds: Mapping[str, Array], *, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """As `NativeSession.run`, for the shapes that the program was compiled for.

        Raises:
            DataError: an input or a given output does not fit.
            NativeError: the values cannot be computed with.
        """
        self._check(feeds)
        self.compiled.settle(feeds, self.threads or 0)
        return self.compiled.run(feeds, out, self.threads or 0)

    def profile(self, feeds: Mapping[str, Array]) -> list[Timed]:
        """As `NativeSession.profile`."""
        self._check(feeds)
        return self.compiled.profile(feeds, self.threads or 0)

    @property
    def description(self) -> str:
        return f"{describe(self.threads)}, compiled in {self.label}"

    def _check(self, feeds: Mapping[str, Array]) -> None:
        known = self.compiled.inputs
        for name in feeds:
            if name not in known:
                raise DataError(f"{self.label} has no input '{name}'{nearest(name, known)}")
        for name, (_, view) in known.items():
            if name not in feeds:
                raise DataError(f"{self.label}: input '{name}' is missing{nearest(name, feeds)}")
            array = feeds[name]
            if view is not None and (array.shape != view.shape or array.dtype != view.dtype):
                raise DataError(
                    f"{self.label} was compiled for input '{name}' of {view.dtype}{list(view.shape)}, not "
                    f"{array.dtype}{list(array.shape)}: compile the model for these shapes"
                )
