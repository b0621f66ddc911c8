"""OpenVINO as a runtime of pumice, on the CPU.

A file is compiled as it lies; a model in memory goes through a temporary one. Inputs are checked before they are handed
over: OpenVINO reads an array of another shape than the model's without complaint. Importing this module does not
import openvino.
"""

from collections.abc import Iterator

from pumice import hookimpl
from pumice_runtime_openvino.runtime import OpenVinoRuntime, OpenVinoSession

__all__ = ["OpenVinoRuntime", "OpenVinoSession"]


@hookimpl
def pumice_runtimes() -> Iterator[type[OpenVinoRuntime]]:
    yield OpenVinoRuntime
