"""What others make of the same models: stock onnxruntime, run here and cached, and recorded figures of heavier tools.

    from peers import STOCK, isolated, quantized, recorded
    file = quantized(STOCK[0], case.path, case.calibration())     # a `Quantized`: path, or the words of its error
    recorded("fashion_resnet")                                    # every `Recorded` figure of that case

Nothing here knows pumice.
"""

from .cache import Quantized, digest, quantized, remembered
from .isolation import Failed, Finished, isolated
from .recorded import TOOLS, Recorded, recorded
from .stock_onnxruntime import BEST_OF, PER_TENSOR, STOCK, Variant

__all__ = [
    "BEST_OF",
    "PER_TENSOR",
    "STOCK",
    "TOOLS",
    "Failed",
    "Finished",
    "Quantized",
    "Recorded",
    "Variant",
    "digest",
    "isolated",
    "quantized",
    "recorded",
    "remembered",
]
