"""What a sample of a changed network scores beside the original, as the search counts: `top1`, `agreement`, `cosine`.

For the peers' environments: nothing here needs more than numpy and onnxruntime.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnxruntime

Answers = list[np.ndarray]
"""Every output for one sample, without the axis of samples."""


def samples(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of one sample each."""
    for at in range(len(next(iter(arrays.values())))):
        yield {name: array[at : at + 1] for name, array in arrays.items()}


def answers(model: str | bytes, feeds: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Answers]:
    """What a model, a path or its bytes, answers, sample by sample."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield [output[0] for output in session.run(None, dict(feed))]


def score(metric: str, found: Answers, known: Answers, label: int | None = None) -> float:
    """Of one sample, without labels the worst of its outputs."""
    if metric == "top1":
        return float(found[0].argmax() == label)
    same = {"agreement": agreement, "cosine": cosine}[metric]
    return min(float(same(*pair)) for pair in zip(found, known, strict=True))


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return np.mean(ours.argmax(axis=-1) == theirs.argmax(axis=-1))


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
