"""What a model's inputs ask of the data, and the check that every sample passes.

A sample is a dictionary from input name to an array that has *all* the axes of that input, the batch axis (usually of
length 1) included. Two conversions are made, because they lose nothing a model could see: float64 to float32, and
between int32 and int64 when every value fits. Anything else that does not fit is refused with its place and a remedy.

Samples may be stacked along axis 0 only if that axis is a batch: it is dynamic in every input, no output has a fixed
first axis, and its symbolic name does not speak of time (`T`, `time`, `seq`, `length`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError, ModelError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
Feeds = dict[str, Array]
ModelLike = Any
"""An `onnx_ir.Model` or the path of one."""

_TIME_AXIS = re.compile(r"^(t|time|times|timesteps?|seq\w*|len\w*|frames?|tokens?|steps?)$", re.IGNORECASE)
_CASTS = {("float64", "float32"), ("int64", "int32"), ("int32", "int64")}


@attrs.frozen(kw_only=True)
class InputSpec:
    """One input of a model."""

    name: str
    dtype: np.dtype[Any] | None
    """None if the model does not say."""
    shape: tuple[int | str | None, ...] | None
    """A name or None stands for a dynamic dimension; None as a whole for an unknown rank."""

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def fits(self, shape: Sequence[int]) -> bool:
        """True if an array of this shape may be fed."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        return all(not isinstance(want, int) or want == have for want, have in zip(self.shape, shape, strict=True))

    def __str__(self) -> str:
        if self.shape is None:
            return "of any shape"
        return f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@attrs.frozen(kw_only=True)
class ModelInputs:
    """The inputs of a model; with `specs` None nothing is known and only the data itself is checked."""

    specs: tuple[InputSpec, ...] | None = None
    stacks: bool = True
    """True if samples may be stacked along axis 0."""

    @classmethod
    def of(cls, model: ModelLike | None) -> ModelInputs:
        """Read the inputs of a model; initializers that are listed as inputs too are not inputs.

        Raises:
            ModelError: the file does not exist or cannot be read.
        """
        if model is None:
            return cls()
        if isinstance(model, ModelInputs):
            return model
        graph = _as_model(model).graph
        specs = tuple(_spec(v) for v in graph.inputs if v.name not in graph.initializers)
        return cls(specs=specs, stacks=_first_axis_is_a_batch(specs, graph))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs or ())

    @property
    def only(self) -> InputSpec | None:
        """The spec of a model with exactly one input, else None."""
        return self.specs[0] if self.specs is not None and len(self.specs) == 1 else None

    def spec(self, name: str) -> InputSpec | None:
        return next((spec for spec in self.specs or () if spec.name == name), None)

    def conform(self, feeds: Mapping[str, Any], where: str, notes: list[str]) -> Feeds:
        """The feeds as the model wants them, in the model's order.

        Conversions made are added to `notes` once.

        Raises:
            DataError: a missing or unknown input, a wrong type or shape, or values that are not finite.
        """
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        if self.specs is not None:
            self.check_names(arrays, where)
            arrays = {s.name: _conform_one(arrays[s.name], s, where, notes) for s in self.specs}
        for name, array in arrays.items():
            _check_values(array, name, where)
        return arrays

    def check_names(self, given: Iterable[str], where: str) -> None:
        """Refuse a missing or an unknown input.

        Raises:
            DataError: names it, and the nearest known one.
        """
        arrays = list(given)
        for name in self.names:
            if name not in arrays:
                raise DataError(f"{where}: the model's input '{name}' is missing{nearest(name, arrays)}")
        for name in arrays:
            if name not in self.names:
                hint = nearest(name, self.names)
                raise DataError(f"{where}: the model has no input '{name}'{hint}; rename it or leave it out")


def names_time(dim: int | str | None) -> bool:
    """True if the symbolic name of an axis speaks of time."""
    return isinstance(dim, str) and _TIME_AXIS.match(dim) is not None


def _as_model(model: ModelLike) -> ir.Model:
    if not isinstance(model, str | Path):
        return model  # type: ignore[no-any-return]
    import onnx_ir as ir

    if not Path(model).is_file():
        raise ModelError(f"there is no model file '{model}': check the path")
    try:
        return ir.load(model)
    except Exception as error:
        raise ModelError(f"'{model}' cannot be read as an ONNX model: export it again") from error


def _spec(value: ir.Value) -> InputSpec:
    import onnx_ir as ir

    dtype = None
    if isinstance(value.type, ir.TensorType) and value.dtype not in (None, ir.DataType.UNDEFINED):
        dtype = np.dtype(value.dtype.numpy())
    return InputSpec(name=str(value.name), dtype=dtype, shape=_shape(value))


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None:
        return None
    dims = (d if isinstance(d, int) else d.value for d in value.shape)
    return tuple(None if isinstance(d, int) and d < 0 else d for d in dims)


def _first_axis_is_a_batch(specs: Sequence[InputSpec], graph: ir.Graph) -> bool:
    first = [spec.shape[0] if spec.shape else 0 for spec in specs]
    if not first or any(isinstance(d, int) or names_time(d) for d in first):
        return False
    if len({d for d in first if d is not None}) > 1:
        return False
    outputs = [_shape(value) for value in graph.outputs]
    return all(shape is None or (len(shape) > 0 and not isinstance(shape[0], int)) for shape in outputs)


def _conform_one(array: Array, spec: InputSpec, where: str, notes: list[str]) -> Array:
    array = _conform_type(array, spec, where, notes)
    if not spec.fits(array.shape):
        raise DataError(
            f"{where}: input '{spec.name}' has shape {list(array.shape)} but the model wants {spec}; "
            f"{_shape_remedy(array, spec)}"
        )
    return array


def _shape_remedy(array: Array, spec: InputSpec) -> str:
    if spec.rank is not None and array.ndim == spec.rank - 1 and spec.fits((1, *array.shape)):
        return "add the batch axis in front, as in x[None]"
    return "reshape, resize or pad the data"


def _conform_type(array: Array, spec: InputSpec, where: str, notes: list[str]) -> Array:
    want, have = spec.dtype, array.dtype
    if want is None or have == want or (want.kind == "O" and have.kind in "OUST"):
        return array
    if have.newbyteorder("=") == want:
        return array.astype(want)
    if (have.name, want.name) not in _CASTS:
        raise DataError(
            f"{where}: input '{spec.name}' has type {have.name} but the model wants {want.name}; "
            f"convert the data (scaling it as the model was trained), e.g. with .astype('{want.name}')"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(want)
    if want.kind == "i" and not np.array_equal(cast, array):
        raise DataError(f"{where}: input '{spec.name}' has values that do not fit {want.name}; check the data")
    note = f"input '{spec.name}' was converted from {have.name} to {want.name}"
    if note not in notes:
        notes.append(note)
    return cast


def _check_values(array: Array, name: str, where: str) -> None:
    if array.size == 0:
        raise DataError(f"{where}: input '{name}' is empty (shape {list(array.shape)}); leave this sample out")
    if array.dtype.kind not in "fc" or np.isfinite(array).all():
        return
    what = "NaN" if np.isnan(array).any() else "infinite values"
    place = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
    raise DataError(f"{where}: input '{name}' holds {what}, first at index {place}; clean the data or leave it out")
