"""NNCF's quantization with accuracy control, in its own environment: reads an order as JSON from standard input.

The order names `model`, `data` (feeds by input, and `labels` if there are any), `samples` to calibrate on, `max_drop`,
and the file to write, `result`. Accuracy is the share of right classes; without labels, of classes that stay the same,
or the mean cosine where the outputs are no classes.
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
    original = answers(model, judged)

    def validate(changed: onnx.ModelProto, batches) -> tuple[float, None]:
        listed = list(batches)
        found, known = answers(changed, listed), [original[number] for number, _ in listed]
        return float(
            np.mean([score(number, found[number], one, labels) for (number, _), one in zip(listed, known, strict=True)])
        ), None

    changed = nncf.quantize_with_accuracy_control(
        model, nncf.Dataset(few), nncf.Dataset(judged), validate, max_drop=order["max_drop"], subset_size=len(few)
    )
    onnx.save(changed, order["result"])


def answers(model: onnx.ModelProto, judged: list) -> dict[int, np.ndarray]:
    """The last output of every sample, by number: classes or an embedding."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {number: session.run(None, feed)[-1][0] for number, feed in judged}


def score(number: int, found: np.ndarray, known: np.ndarray, labels: np.ndarray | None) -> float:
    if labels is not None:
        return float(found.argmax() == labels[number])
    if found.ndim == 1 and np.isclose(np.linalg.norm(known), 1.0, atol=1e-3) and (known < 0).any():
        return float(found @ known / np.linalg.norm(found))
    return float(found.argmax() == known.argmax())


if __name__ == "__main__":
    main(json.load(sys.stdin))
