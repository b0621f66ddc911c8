"""TensorRT engines: explicit 8-bit integers as pumice has quantized them, 16-bit floats elsewhere."""

from collections.abc import Iterator

from pumice import hookimpl
from pumice_export_tensorrt.exporter import TensorRt

__all__ = ["TensorRt"]


@hookimpl
def pumice_exporters() -> Iterator[type[TensorRt]]:
    yield TensorRt
