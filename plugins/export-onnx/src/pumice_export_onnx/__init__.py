"""ONNX files in two forms, of the same integers: QuantizeLinear and DequantizeLinear around ordinary operators, which
every runtime understands, or integer operators in their place, which say outright what is computed.
"""

from collections.abc import Iterator

from pumice import hookimpl
from pumice_export_onnx.exporters import Qdq, QOperator

__all__ = ["QOperator", "Qdq"]


@hookimpl
def pumice_exporters() -> Iterator[type[Qdq]]:
    yield Qdq
    yield QOperator
