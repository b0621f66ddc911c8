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

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import cattrs

from pumice.errors import DataError, nearest

FILE = "pumice.toml"


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
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"'{path}' cannot be read as TOML ({error}): correct it there") from error
    for name, entry in table.get("inputs", {}).items():
        if not isinstance(entry, dict):
            raise DataError(f"'{path}': write what belongs to the input '{name}' as a table [inputs.{name}]")
        if "from" in entry:
            entry["source"] = entry.pop("from")
    return _structured(table, path)


def _structured(table: Mapping[str, Any], path: Path) -> Declaration:
    _known(table, Declaration, path, "")
    for name, entry in table.get("inputs", {}).items():
        _known(entry, InputDeclaration, path, f"[inputs.{name}] ")
    if "tokenizer" in table:
        _known(table["tokenizer"], TokenizerDeclaration, path, "[tokenizer] ")
    try:
        return attrs.evolve(_converter().structure(dict(table), Declaration), path=path)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError) as error:
        told = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [str(error)]
        raise DataError(f"'{path}' has a value that does not fit: {told[0]}") from error


def _known(table: Mapping[str, Any], record: type[attrs.AttrsInstance], path: Path, where: str) -> None:
    names = {field.name for field in attrs.fields(record)} - {"path"}
    for key in table:
        if key not in names:
            shown = {"from" if n == "source" else n for n in names}
            raise DataError(f"'{path}': {where}there is no key '{key}'{nearest(key, shown)}")


def _converter() -> cattrs.Converter:
    """Accepts one number where a list of channels is meant, and checks texts and whole numbers strictly."""
    converter = cattrs.Converter()

    def size(value: Any, _: Any) -> int | tuple[int, int] | None:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value):
            return value[0], value[1]
        raise ValueError(f"a size is a whole number or [height, width], not {value!r}")

    def numbers(value: Any, _: Any) -> tuple[float, ...]:
        return tuple(float(v) for v in (value if isinstance(value, list) else [value]))

    converter.register_structure_hook_func(lambda t: t == int | tuple[int, int] | None, size)
    converter.register_structure_hook_func(lambda t: t == tuple[float, ...], numbers)
    return converter
