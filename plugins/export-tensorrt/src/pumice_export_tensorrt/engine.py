"""TensorRT itself: its version, and an engine from an ONNX file.

Free dimensions get one optimization profile: the least, the usual and the most that they will be. Kernels are timed
while an engine is built; a timing cache of the same GPU and version saves that, any other is ignored and made anew.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from pumice.errors import ModelError, PumiceError

MAJOR = 10
"""The last with the builder flags of `FLAGS` and INT8: 11 takes every type from the model."""
REQUIREMENT = f"tensorrt-cu13>={MAJOR},<{MAJOR + 1}"
FLAGS = {"float16": "FP16", "bfloat16": "BF16", "float32": None}
Sizes = Mapping[str, tuple[int, int, int]]


def missing() -> str | None:
    """None if TensorRT is here in a version that is known, else the reason and the remedy."""
    remedy = f"install it with pip install '{REQUIREMENT}' on a machine with an NVIDIA GPU"
    try:
        version = str(importlib.import_module("tensorrt").__version__)
    except (ImportError, OSError) as error:
        return f"TensorRT cannot be loaded ({str(error).partition(chr(10))[0]}): {remedy}"
    if version.partition(".")[0] != str(MAJOR):
        return f"TensorRT {MAJOR} is needed and {version} is installed: {remedy}"
    return None


def tensorrt() -> Any:
    """The module.

    Raises:
        PumiceError: it is not installed, or of a version that is not known here.
    """
    if (reason := missing()) is not None:
        raise PumiceError(f"exporter 'tensorrt' cannot write here: {reason}")
    return importlib.import_module("tensorrt")


@attrs.frozen(kw_only=True)
class Engine:
    """How an engine is built."""

    floats: str
    """One of `FLAGS`."""
    integers: bool
    sizes: Sizes
    """Least, usual and most of every free dimension."""
    workspace: int
    """Bytes."""
    timing_cache: Path | None

    def build(self, path: Path) -> bytes:
        """The engine for an ONNX file, opened once to see that it can be.

        Raises:
            ModelError: TensorRT does not take the model; a free dimension has no sizes.
            PumiceError: there is no TensorRT, or no GPU.
        """
        trt = tensorrt()
        logger = _logger(trt)
        try:
            builder = trt.Builder(logger)
        except Exception as error:
            raise PumiceError(f"TensorRT finds no GPU to build for ({error}): export where there is one") from None
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            raise ModelError(f"TensorRT does not take the model: {_first_error(parser)}; export with exporter 'qdq'")
        config = self._config(trt, builder, network)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ModelError(f"TensorRT could not build an engine: {logger.last or 'it does not say why'}")
        if trt.Runtime(logger).deserialize_cuda_engine(plan) is None:
            raise ModelError(f"TensorRT does not open the engine that it built: {logger.last}")
        timings = config.get_timing_cache()
        if self.timing_cache is not None and timings is not None:
            replace(self.timing_cache, bytes(timings.serialize()))
        return bytes(plan)

    def _config(self, trt: Any, builder: Any, network: Any) -> Any:
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace)
        for flag in (FLAGS[self.floats], "INT8" if self.integers else None):
            if flag is not None:
                config.set_flag(getattr(trt.BuilderFlag, flag))
        timings = config.create_timing_cache(self._timings()) or config.create_timing_cache(b"")
        if not config.set_timing_cache(timings, ignore_mismatch=False):  # of another GPU or version
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        shapes = {x.name: tuple(map(x.get_dimension_name, range(len(x.shape)))) for x in _inputs(network)}
        free = [x for x in _inputs(network) if any(size < 0 for size in x.shape)]
        if free:
            profile = builder.create_optimization_profile()
            for x in free:
                profile.set_shape(x.name, *(self._shape(x, shapes[x.name], which) for which in range(3)))
            config.add_optimization_profile(profile)
        return config

    def _timings(self) -> bytes:
        """Those of earlier builds.

        Raises:
            PumiceError: the file cannot be read.
        """
        if self.timing_cache is None or not self.timing_cache.exists():
            return b""
        try:
            return self.timing_cache.read_bytes()
        except OSError as error:
            raise PumiceError(
                f"'{self.timing_cache}' cannot be read ({error.strerror}): name another with the knob 'timing_cache'"
            ) from error

    def _shape(self, x: Any, names: tuple[str, ...], which: int) -> tuple[int, ...]:
        """The least, usual or most of an input's dimensions."""
        for size, name in zip(x.shape, names, strict=True):
            if size < 0 and name not in self.sizes:
                raise ModelError(
                    f"dimension '{name}' of input '{x.name}' is free: say how large it will be with the knob 'sizes', "
                    f"as {name or 'N'}=1:8:32"
                )
        return tuple(self.sizes[name][which] if size < 0 else size for size, name in zip(x.shape, names, strict=True))


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(i) for i in range(network.num_inputs)]


def _first_error(parser: Any) -> str:
    return str(parser.get_error(0).desc()) if parser.num_errors else "it does not say why"


def _logger(trt: Any) -> Any:
    """Keeps the last error, and prints nothing."""

    class Last(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = message

    return Last()


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        PumiceError: it cannot be written.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        work.write_bytes(content)
        work.replace(path)
    except OSError as error:
        raise PumiceError(f"'{path}' cannot be written ({error.strerror}): name another file") from error
    finally:
        work.unlink(missing_ok=True)
