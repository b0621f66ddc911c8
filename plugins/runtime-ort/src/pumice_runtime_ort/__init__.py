"""ONNX Runtime as a runtime of pumice.

A session is opened on the file itself where nothing has to change, else on the serialised model; models whose weights
exceed what protobuf holds go through a temporary file with external data. What runs is verified, not assumed: a
provider that was asked for and did not load is an error. Importing this module does not import onnxruntime.
"""

from collections.abc import Iterator

from pumice import hookimpl
from pumice_runtime_ort.runtime import OrtRuntime, OrtSession

__all__ = ["OrtRuntime", "OrtSession"]


@hookimpl
def pumice_runtimes() -> Iterator[type[OrtRuntime]]:
    yield OrtRuntime
