"""NNCF's quantization with accuracy control, in its own environment: reads an order as JSON from standard input.

The order names `model`, `data` (feeds by input, and `labels` if there are any), `samples` to calibrate on, every how
manieth of the others (`stride`) judges, the `metric`, `max_drop`, and the file to write, `result`. It counts as the
search does (`scores.py`).
"""

import json
import sys

import nncf
import numpy as np
import onnx
from scores import answers, samples, score


def main(order: dict) -> None:
    model, arrays = onnx.load(order["model"]), dict(np.load(order["data"]))
    labels = arrays.pop("labels", None)
    feeds = list(samples(arrays))
    few, judged = feeds[: order["samples"]], slice(order["samples"], None, order["stride"])
    original = list(answers(order["model"], feeds[judged]))
    right = [None] * len(original) if labels is None else labels[judged]

    def validate(changed: onnx.ModelProto, batches) -> tuple[float, list[float]]:
        # NNCF asks for parts of what judges too: its samples are (number, feed).
        numbers, parts = zip(*batches, strict=True)
        found = answers(changed.SerializeToString(), parts)
        scores = [score(order["metric"], one, original[at], right[at]) for at, one in zip(numbers, found, strict=True)]
        return float(np.mean(scores)), scores

    changed = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(few),
        nncf.Dataset(list(enumerate(feeds[judged]))),
        validate,
        max_drop=order["max_drop"],
        subset_size=len(few),
    )
    onnx.save(changed, order["result"])


if __name__ == "__main__":
    main(json.load(sys.stdin))
