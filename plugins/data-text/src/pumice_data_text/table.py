"""CSV and JSONL: a row a sample, of texts to tokenise, arrays of ids, or numbers.

An input is fed from, in this order: its entry in `pumice.toml`; the tokenizer, if the input has one of the usual names
(`input_ids`, `attention_mask`, `token_type_ids`); the column with its own name. Text carries no axes and no types: a
value gets the leading axis and the type of the input. Only the place of each row is kept (8 bytes), so rows are read in
any order.
"""

from __future__ import annotations

import csv
import io
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pumice.data.dataset import IndexedDataset, Sample, with_row
from pumice.data.declaration import Declaration, InputDeclaration, TokenizerDeclaration
from pumice.data.inputs import Array, Feeds, InputSpec, ModelInputs
from pumice.data.labels import value_of
from pumice.errors import DataError, nearest

_USUAL = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}

Row = Mapping[str, Any]


class TextTable(IndexedDataset):
    """Rows of a file."""

    def __init__(self, path: Path, inputs: ModelInputs, declared: Declaration) -> None:
        if inputs.specs is None:
            raise DataError(f"'{path}' cannot be opened without a model: its inputs say what a row means")
        self._path, self._declared = path, declared
        self._rows = RowFile(path)
        first = self._rows[0] if len(self._rows) else {}
        self._label = declared.label if declared.label in first else None
        self._encode = _tokenizer(declared, inputs) if declared.tokenizer else None
        _check_declared(declared, inputs)
        super().__init__(
            f"'{path}'", inputs, labelled=self._label is not None, length=len(self._rows), notes=self._notes(first)
        )

    def load(self, index: int) -> Sample:
        row, where = self._rows[index], f"'{self._path}', row {index + 1}"
        encoded = self._encode(row, where) if self._encode else {}
        feeds = {s.name: self._value(s, row, encoded, where) for s in self.inputs.specs or ()}
        label = None
        if self._label is not None:
            label = with_row(self._label_of(row, where), 1, where)
        return Sample(feeds=feeds, label=label, where=where)

    def identity(self) -> str:
        return f"{self._path.name}:{self._path.stat().st_size}"

    def _notes(self, first: Row) -> list[str]:
        notes = []
        if self._label is None:
            columns = ", ".join(list(first)[:8])
            notes.append(f"'{self._path.name}' has no column '{self._declared.label}' for labels (columns: {columns})")
        return notes

    def _value(self, spec: InputSpec, row: Row, encoded: Feeds, where: str) -> Array:
        constant = self._declared.constant(spec.name, spec.dtype)
        if constant is not None:
            return constant
        entry = self._declared.inputs.get(spec.name, InputDeclaration())
        source = entry.source or (_USUAL.get(spec.name) if not (entry.column or entry.columns) else None)
        if source in encoded:
            return _typed(encoded[source], spec, where)
        if entry.columns:
            return _typed([_cell(row, name, where) for name in entry.columns], spec, where)
        return _typed(_cell(row, entry.column or spec.name, where), spec, where)

    def _label_of(self, row: Row, where: str) -> Any:
        value = _cell(row, self._label or "", where)
        value = value_of(value) if isinstance(value, str) else value
        if isinstance(value, str) and self._declared.classes:
            if value not in self._declared.classes:
                raise DataError(f"{where}: '{value}' is no class{nearest(value, self._declared.classes)}")
            return self._declared.classes.index(value)
        return value


class RowFile:
    """The rows of a CSV (with a header), TSV or JSONL file, read one by one from their byte offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._json = path.suffix.lower() in {".jsonl", ".ndjson"}
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        try:
            self._header: list[str] = []
            with path.open("rb") as file:
                self._offsets = array("q", self._scan(file))
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"'{path}' cannot be read ({error}): save it as UTF-8 text") from error

    def __len__(self) -> int:
        return max(len(self._offsets) - 1, 0)

    def __getitem__(self, index: int) -> Row:
        where = f"'{self._path}', row {index + 1}"
        start, stop = self._offsets[index], self._offsets[index + 1]
        with self._path.open("rb") as file:
            file.seek(start)
            text = file.read(stop - start).decode("utf-8")
        return self._parsed(text, where)

    def _parsed(self, text: str, where: str) -> Row:
        if self._json:
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({error}): correct or remove it") from error
            if not isinstance(row, dict):
                raise DataError(f'{where} is not a table: write each row as {{"column": value, ...}}')
            return row
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter))
        if len(cells) != len(self._header):
            raise DataError(f"{where} has {len(cells)} cells but the header has {len(self._header)}: correct the row")
        return dict(zip(self._header, cells, strict=True))

    def _scan(self, file: BinaryIO) -> Iterator[int]:
        """The offset of every row, and of the end."""
        place = 0

        def lines() -> Iterator[str]:
            nonlocal place
            for line in file:
                place += len(line)
                yield line.decode("utf-8-sig" if place == len(line) else "utf-8")

        # csv.reader takes as many lines as a row needs, so `place` stands at the end of the row it has just returned
        records: Iterator[Any] = lines() if self._json else csv.reader(lines(), delimiter=self._delimiter)
        if not self._json:
            self._header = next(records, [])
        start = place
        for record in records:
            if record and (not isinstance(record, str) or record.strip()):
                yield start
            start = place
        yield start


def _tokenizer(declared: Declaration, inputs: ModelInputs) -> Callable[[Row, str], Feeds]:
    """A function from a row to `ids`, `mask` and `types`."""
    assert declared.tokenizer is not None
    settings: TokenizerDeclaration = declared.tokenizer
    path = declared.folder / settings.file
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(f"'{declared.path}' declares a tokenizer: run `pip install tokenizers`") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise DataError(f"the tokenizer '{path}' cannot be read ({error}): check `file` in pumice.toml") from error
    length = _fixed_length(inputs, declared) or settings.max_length
    tokenizer.enable_truncation(length)
    if settings.pad or _fixed_length(inputs, declared):
        padding = dict(tokenizer.padding or {})
        tokenizer.enable_padding(**{k: padding[k] for k in ("pad_id", "pad_token") if k in padding}, length=length)
    else:
        tokenizer.no_padding()

    def encode(row: Row, where: str) -> Feeds:
        pair = None if settings.pair is None else str(_cell(row, settings.pair, where))
        found = tokenizer.encode(str(_cell(row, settings.text, where)), pair)
        return {
            "ids": np.asarray(found.ids),
            "mask": np.asarray(found.attention_mask),
            "types": np.asarray(found.type_ids),
        }

    return encode


def _fixed_length(inputs: ModelInputs, declared: Declaration) -> int | None:
    for spec in inputs.specs or ():
        entry = declared.inputs.get(spec.name, InputDeclaration())
        if (entry.source or _USUAL.get(spec.name)) and spec.shape and isinstance(spec.shape[-1], int):
            return spec.shape[-1]
    return None


def _check_declared(declared: Declaration, inputs: ModelInputs) -> None:
    for name in declared.inputs:
        if inputs.spec(name) is None:
            raise DataError(f"'{declared.path}': the model has no input '{name}'{nearest(name, inputs.names)}")


def _cell(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where} has no column '{column}'{nearest(column, row)}")
    return row[column]


def _number(value: Any) -> Any:
    return value_of(value) if isinstance(value, str) else value


def _typed(value: Any, spec: InputSpec, where: str) -> Array:
    """A value read from text, with the type of the input and its leading axis."""
    if spec.dtype is None or spec.dtype.kind != "O":
        value = value.split() if isinstance(value, str) and " " in value.strip() else value
        value = [_number(v) for v in value] if isinstance(value, list) else _number(value)
    try:
        found = np.asarray(value)
        typed = found if spec.dtype is None else found.astype(spec.dtype)
        exact = typed.dtype.kind not in "iub" or np.array_equal(typed, found)
    except (ValueError, TypeError, OverflowError):
        exact = False
    if not exact:
        raise DataError(f"{where}: input '{spec.name}' wants numbers of type {spec.dtype}, not {str(value)[:60]!r}")
    if spec.rank is not None and typed.ndim == spec.rank - 1:
        typed = typed[None]
    if spec.shape == (1,) and typed.ndim == 0:
        typed = typed[None]
    return typed
