"""Olive's search over its quantizations of an ONNX file, in its own environment: an order as JSON comes in.

The order names `model`, `data` (feeds by input, and `labels`; where the user has none, the classes that the model
itself gives), how many `samples` calibrate, every how manieth of the others (`stride`) judges, the `metric`, the number
of `classes`, `max_drop`, `seconds`, and the file to write, `result`. Asked for is the lowest latency within what may be
lost; where nothing keeps within it, no file is written.

Olive's accuracy is of classes. By the cosine an evaluator of our own judges (`Fidelity`): a metric of type `custom`
loses its function when Olive writes its configuration down.

Olive imports this file once more, as the script that provides the data and the evaluator.
"""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from olive.data.registry import Registry
from olive.evaluator.metric_result import MetricResult
from olive.evaluator.olive_evaluator import OnnxEvaluator
from olive.evaluator.registry import Registry as Evaluators
from scores import Answers, answers, samples, score

ORDER = "OLIVE_PEER_ORDER"


class Arrays(torch.utils.data.Dataset):
    """Feeds of one sample each, and its class."""

    def __init__(self, feeds: dict, labels: np.ndarray) -> None:
        self.feeds, self.labels = feeds, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple:
        return {name: array[at] for name, array in self.feeds.items()}, int(self.labels[at])


@Registry.register_dataset()
def arrays(first: int, end: int | None, stride: int, **_: object) -> Arrays:
    order = json.loads(os.environ[ORDER])
    found, chosen = dict(np.load(order["data"])), slice(first, end, stride)
    labels = found.pop("labels", None)
    feeds = {name: array[chosen] for name, array in found.items()}
    return Arrays(feeds, classes_of(order["model"], feeds) if labels is None else labels[chosen])


@Registry.register_post_process()
def classes(output: object, **_: object) -> torch.Tensor:
    scores = next(iter(output.values())) if isinstance(output, dict) else output
    return torch.as_tensor(scores[0] if isinstance(scores, list | tuple) else scores).argmax(-1)


class Fidelity(OnnxEvaluator):
    """Takes the mean score beside the original for the accuracy."""

    original: ClassVar[list[Answers]] = []

    def _evaluate_accuracy(self, model, metric, *_: object, **__: object) -> MetricResult:
        order = json.loads(os.environ[ORDER])
        chosen = slice(order["samples"], None, order["stride"])
        feeds = list(samples({name: array[chosen] for name, array in np.load(order["data"]).items()}))
        self.original.extend(() if self.original else answers(order["model"], feeds))
        found = answers(str(model.model_path), feeds)
        scores = [score(order["metric"], *pair) for pair in zip(found, self.original, strict=True)]
        (asked,) = metric.sub_types
        told = {"value": float(np.mean(scores)), "priority": asked.priority, "higher_is_better": True}
        return MetricResult.model_validate({asked.name: told})


def classes_of(model: str, feeds: dict) -> np.ndarray:
    return np.array([found[-1].argmax() for found in answers(model, samples(feeds))])


def data(name: str, **part: int | None) -> dict:
    return {
        "name": name, "type": "DataContainer", "user_script": __file__,
        "load_dataset_config": {"type": "arrays", "params": part}, "dataloader_config": {"params": {"batch_size": 1}},
        "post_process_data_config": {"type": "classes"},
    }  # fmt: skip


def main(order: dict) -> None:
    from olive.workflows import run

    Evaluators.register()(Fidelity)  # here, since a second time it is refused
    folder = Path(order["result"]).parent / "olive"
    accuracy = {
        "name": "accuracy_score", "priority": 2, "higher_is_better": True,
        "metric_config": {"task": "multiclass", "num_classes": order["classes"]},
        "goal": {"type": "max-degradation", "value": order["max_drop"]},
    }  # fmt: skip
    latency = {
        "name": "avg", "priority": 1, "higher_is_better": False,
        "metric_config": {"warmup_num": 20, "repeat_test_num": 200, "sleep_num": 0},
    }  # fmt: skip
    device = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": order["model"]},
            "systems": {"local": {"type": "LocalSystem", "accelerators": [device]}},
            "data_configs": [
                data("calibration", first=0, end=order["samples"], stride=1),
                data("judged", first=order["samples"], end=None, stride=order["stride"]),
            ],
            # Without `type` Olive 0.13.0 ends with an error, and so it does without a `metric_config` of the latency.
            "evaluators": {
                "judge": {
                    "type": "Fidelity" if order["metric"] == "cosine" else "OnnxEvaluator",
                    "metrics": [
                        {"name": "accuracy", "type": "accuracy", "data_config": "judged", "sub_types": [accuracy]},
                        {"name": "latency", "type": "latency", "data_config": "judged", "sub_types": [latency]},
                    ],
                }
            },
            "passes": {"quantize": {"type": "OnnxQuantization", "data_config": "calibration"}},
            "search_strategy": {"execution_order": "joint", "sampler": "tpe", "max_time": order["seconds"]},
            "evaluator": "judge", "host": "local", "target": "local",
            "cache_dir": str(folder / "cache"), "output_dir": str(folder / "found"), "log_severity_level": 3,
        }
    )  # fmt: skip
    found = folder / "found" / "model.onnx"
    if found.exists():
        found.rename(order["result"])


if __name__ == "__main__":
    os.environ[ORDER] = text = sys.stdin.read()
    main(json.loads(text))
