"""`pumice.toml` beside the data: how files become inputs, declared in one small table an input.

classes = ["cat", "dog"]          # names of the labels, in the order of their numbers
label = "sentiment"               # CSV/JSONL: the column of the labels

[inputs.image]                    # an image input
resize = 256                      # the shorter side, or [height, width]
crop = 224                        # from the centre: a side, or [height, width]
channels = "RGB"                  # RGB, BGR or L
layout = "NCHW"                   # or NHWC
scale = 0.00392156862745098       # value = (pixel * scale - mean) / std
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
dtype = "float32"

[tokenizer]                       # text: a tokenizer.json of the `tokenizers` library, relative to this file
file = "tokenizer.json"
text = "review"                   # the column of the text; `pair` for a second one
max_length = 128

[inputs.input_ids]
from = "ids"                      # ids, mask or types of the tokenizer

[inputs.features]
columns = ["age", "height"]       # numbers of a CSV, in this order

[inputs.rate]
constant = 16000                  # the same for every sample
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
import cattrs.v
import numpy as np
from numpy.typing import NDArray

from pumice.errors import DataError, nearest
from pumice.toml import read_table

FILE = "pumice.toml"

LARGEST_SIDE = 16_384
"""Pixels to which a side may be resized: the square of it, as float32 RGB, is 3 GB."""

LONGEST_TEXT = 1_000_000
"""Tokens to which a text may be cut or padded."""


@attrs.frozen(kw_only=True)
class InputDeclaration:
    """How one input is made. Which keys matter depends on the kind of data."""

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    channels: Literal["RGB", "BGR", "L"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    source: Literal["ids", "mask", "types"] | None = None
    """Written `from` in the file."""
    column: str | None = None
    columns: tuple[str, ...] = ()
    constant: Any = None


@attrs.frozen(kw_only=True)
class TokenizerDeclaration:
    """The tokenizer of text data."""

    file: str
    text: str = "text"
    pair: str | None = None
    max_length: int = 128
    pad: bool = False
    """Pad every text to `max_length`; done anyway where the model's axis is fixed."""


@attrs.frozen(kw_only=True)
class Declaration:
    """The whole file; `path` is None when there is none."""

    path: Path | None = None
    inputs: Mapping[str, InputDeclaration] = attrs.field(factory=dict)
    classes: tuple[str, ...] = ()
    label: str = "label"
    tokenizer: TokenizerDeclaration | None = None

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path else Path()

    def constant(self, name: str, dtype: np.dtype[Any] | None) -> NDArray[Any] | None:
        """The array declared as the constant of an input; None if there is none.

        Raises:
            DataError: it is no array of this type.
        """
        entry = self.inputs.get(name)
        if entry is None or entry.constant is None:
            return None
        try:
            return np.asarray(entry.constant, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"'{self.path}': the constant of input '{name}' is no array of {dtype or 'numbers'} ({error})"
            ) from error


def read_declaration(near: Path) -> Declaration:
    """The `pumice.toml` beside (or in) `near`, or in the folder above, or an empty declaration.

    Raises:
        DataError: it is not TOML, or has a key or value that means nothing here.
    """
    folder = near if near.is_dir() else near.parent
    path = next((p for p in (folder / FILE, folder.parent / FILE) if p.is_file()), None)
    if path is None:
        return Declaration()
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as TOML ({error}): correct it there") from error
    inputs = table.get("inputs", {})
    if not isinstance(inputs, dict):
        raise DataError(f"'{path}': write what belongs to an input as a table [inputs.NAME]")
    for name, entry in inputs.items():
        if not isinstance(entry, dict):
            raise DataError(f"'{path}': write what belongs to the input '{name}' as a table [inputs.{name}]")
        _known(entry, InputDeclaration, path, f"[inputs.{name}] ")
        if "from" in entry:
            entry["source"] = entry.pop("from")
    return _structured(table, path)


def _structured(table: Mapping[str, Any], path: Path) -> Declaration:
    _known(table, Declaration, path, "")
    if "tokenizer" in table:
        if not isinstance(table["tokenizer"], dict):
            raise DataError(f"'{path}': write the tokenizer as a table [tokenizer]")
        _known(table["tokenizer"], TokenizerDeclaration, path, "[tokenizer] ")
    try:
        return attrs.evolve(_converter().structure(dict(table), Declaration), path=path)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError) as error:
        told = cattrs.transform_error(error, format_exception=_told)[0]
        what, _, where = told.partition(" @ $.")
        where = where.replace("['", ".").replace("']", "").replace("source", "from")
        raise DataError(f"'{path}' has a value that does not fit: {what} ({where}); correct it there") from error


def _told(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, _Misfit) else cattrs.v.format_exception(error, kind)


def _known(table: Mapping[str, Any], record: type[attrs.AttrsInstance], path: Path, where: str) -> None:
    names = {"from" if f.name == "source" else f.name for f in attrs.fields(record)} - {"path"}
    for key in table:
        if key not in names:
            raise DataError(f"'{path}': {where}there is no key '{key}'{nearest(key, names)}")


class _Misfit(ValueError):
    """A value of the wrong kind; the text says which is right."""


def _converter() -> cattrs.Converter:
    """Takes a value for what it is written as: "128" is no number, and "no" no truth value.

    Only a number stands for a list of one, and a whole number for a real one.
    """
    converter = cattrs.Converter()
    for kind, hook in ((str, _text), (bool, _switch), (int, _length)):
        converter.register_structure_hook(kind, _of_value(hook))
    hooks: dict[Any, Callable[[Any], Any]] = {
        float | None: _real,
        int | tuple[int, int] | None: _size,
        tuple[float, ...]: _numbers,
        tuple[str, ...]: _texts,
    }
    for annotation, read in hooks.items():
        converter.register_structure_hook_func(functools.partial(operator.eq, annotation), _of_value(read))
    converter.register_structure_hook_func(_is_literal, _choice)
    return converter


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _of_value(hook: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, _: hook(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Misfit(f"{value!r} is not a text")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Misfit(f"{value!r} is neither true nor false")
    return value


def _length(value: Any) -> int:
    if not _is_whole(value) or not 0 < value <= LONGEST_TEXT:
        raise _Misfit(f"{value!r} is not a whole number from 1 to {LONGEST_TEXT}")
    return int(value)


def _real(value: Any) -> float:
    if not (_is_whole(value) or isinstance(value, float)) or not np.isfinite(value):
        raise _Misfit(f"{value!r} is not a finite number")
    return float(value)


def _size(value: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(_is_whole(side) and 0 < side <= LARGEST_SIDE for side in sides):
        raise _Misfit(f"{value!r} is not a size (a whole number from 1 to {LARGEST_SIDE}, or [height, width])")
    return int(value) if len(sides) == 1 else (sides[0], sides[1])


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_real(number) for number in (value if isinstance(value, list) else [value]))


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Misfit(f"{value!r} is not a list of texts")
    return tuple(_text(item) for item in value)


def _choice(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise _Misfit(f"{value!r} is none of {', '.join(get_args(kind))}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
