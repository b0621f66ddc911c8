"""CSV, TSV and JSONL: a row a sample, of texts to tokenise, arrays of ids, or numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pumice import DatasetReader, hookimpl

if TYPE_CHECKING:
    from pumice.data import Dataset


@attrs.frozen(kw_only=True)
class TextReader(DatasetReader):
    """A .csv or .jsonl file, a row a sample: texts with a declared tokenizer, arrays of ids, or columns of numbers."""

    name = "text"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in {".csv", ".tsv", ".jsonl", ".ndjson"}

    def open(self, path: Path, model: Any) -> Dataset:
        from pumice.data.declaration import read_declaration
        from pumice.data.inputs import ModelInputs
        from pumice_data_text.table import TextTable

        return TextTable(path, ModelInputs.of(model), read_declaration(path))


@hookimpl
def pumice_datasets() -> Iterator[type[DatasetReader]]:
    yield TextReader
