"""A whole network in OpenVINO: float, quantized to 8 bits by NNCF, or with weights of 4 bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
GROUP = 128


def build(
    peer: str, seed: int, threads: int, path: str, feeds: str, kind: str, kept: str, transformer: bool
) -> Call:  # fmt: skip
    """Quantized models are kept under `kept`; float ones compute in float32, others as OpenVINO likes best."""
    import openvino

    core, given = openvino.Core(), _feeds(feeds)
    model = core.read_model(kept if kind != "float" and Path(kept).exists() else path)
    model.reshape({name: list(array.shape) for name, array in given[0].items()})
    if kind != "float" and not Path(kept).exists():
        model = _smaller(model, given, kind, transformer)
        openvino.save_model(model, kept, compress_to_fp16=False)
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    options |= {"INFERENCE_PRECISION_HINT": "f32"} if kind == "float" else {}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in given[0].items()}
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
    return lambda kept=(given, tensors): request.infer()  # tensors share memory with arrays that must stay


def _feeds(path: str) -> list[dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key, array in arrays.items():
            number, _, name = key.partition(".")
            found.setdefault(number, {})[name] = array
    return list(found.values())


def _smaller(model: Any, feeds: list[dict[str, np.ndarray]], kind: str, transformer: bool) -> Any:
    import nncf

    if kind == "int4":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=GROUP, ratio=1.0)
    shape = nncf.ModelType.TRANSFORMER if transformer else None
    return nncf.quantize(model, nncf.Dataset(feeds), model_type=shape, subset_size=len(feeds))
