"""NNCF's quantization with accuracy control, in its own environment: reads an order as JSON from standard input.

The order names `model`, `data` (feeds by input, and `labels` if there are any), `samples` to calibrate on, every how
manieth of the others (`stride`) judges, the `metric`, `max_drop`, and the file to write, `result`. It counts as the
search does: by `top1`, `agreement` or `cosine`.
"""

import json
import sys

import nncf
import numpy as np
import onnx
import onnxruntime


def main(order: dict) -> None:
    model, arrays = onnx.load(order["model"]), dict(np.load(order["data"]))
    labels = arrays.pop("labels", None)
    feeds = [
        {name: array[at : at + 1] for name, array in arrays.items()} for at in range(len(next(iter(arrays.values()))))
    ]
    few, judged = feeds[: order["samples"]], list(enumerate(feeds))[order["samples"] :: order["stride"]]
    original = dict(answers(model, judged))

    def validate(changed: onnx.ModelProto, batches) -> tuple[float, list[float]]:
        scores = [
            score(order["metric"], found, original[at], None if labels is None else labels[at])
            for at, found in answers(changed, batches)
        ]
        return float(np.mean(scores)), scores

    changed = nncf.quantize_with_accuracy_control(
        model, nncf.Dataset(few), nncf.Dataset(judged), validate, max_drop=order["max_drop"], subset_size=len(few)
    )
    onnx.save(changed, order["result"])


def answers(model: onnx.ModelProto, judged):
    """Number and outputs of every sample."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for at, feed in judged:
        yield at, [output[0] for output in session.run(None, feed)]


def score(metric: str, found: list, known: list, label: int | None) -> float:
    """Of one sample, without labels the worst of its outputs."""
    if metric == "top1":
        return float(found[0].argmax() == label)
    same = {"agreement": agreement, "cosine": cosine}[metric]
    return min(float(same(*pair)) for pair in zip(found, known, strict=True))


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return np.mean(ours.argmax(axis=-1) == theirs.argmax(axis=-1))


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))


if __name__ == "__main__":
    main(json.load(sys.stdin))
