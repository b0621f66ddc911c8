"""Core's own strategies keep the contracts that a stranger's must keep."""

from types import MappingProxyType

import numpy as np

from pumice.data.npz import NpzFolderReader, NpzReader
from pumice.measure.metrics import BUILTIN_METRICS
from pumice.measure.plan_runtime import ReferenceRuntime
from pumice.quantize.simulated_runtime import SimulatedRuntime
from pumice.testing import DatasetReaderContract, MetricContract, RuntimeContract
from pumice.testing.metric import SAMPLES

METRICS = {metric.name: metric for metric in BUILTIN_METRICS}


class TestReferenceRuntime(RuntimeContract):
    strategy = ReferenceRuntime


class TestSimulatedRuntime(RuntimeContract):
    strategy = SimulatedRuntime


class TestSimulatedRuntimeWithVnni(RuntimeContract):
    strategy = SimulatedRuntime
    settings = MappingProxyType({"pair_saturation": False})


class TestTop1(MetricContract):
    strategy = METRICS["top1"]


class TestTop5(MetricContract):
    strategy = METRICS["top5"]


class TestAgreement(MetricContract):
    strategy = METRICS["agreement"]


class TestRelativeError(MetricContract):
    strategy = METRICS["relative-error"]


class Sequences(MetricContract):
    """Class scores and labels for every position of a sequence."""

    def batch(self, rng):
        logits = rng.standard_normal((SAMPLES, 6, 10)).astype(np.float32)
        return {"logits": logits}, rng.integers(0, 10, (SAMPLES, 6)), {"logits": logits}


class TestTokenAccuracy(Sequences):
    strategy = METRICS["token-accuracy"]


class TestSequenceAccuracy(Sequences):
    strategy = METRICS["sequence-accuracy"]


class Distances(MetricContract):
    """No labels: the original model's outputs are what is compared with."""

    def batch(self, rng):
        outputs, _, reference = super().batch(rng)
        return outputs, None, reference


class TestMse(Distances):
    strategy = METRICS["mse"]


class TestCosine(Distances):
    strategy = METRICS["cosine"]


class TestNpz(DatasetReaderContract):
    strategy = NpzReader

    def write(self, folder, feeds, labels):
        np.savez(folder / "samples.npz", x=feeds, labels=labels)
        return folder / "samples.npz"


class TestNpzFolder(DatasetReaderContract):
    strategy = NpzFolderReader

    def write(self, folder, feeds, labels):
        for index, (feed, label) in enumerate(zip(feeds, labels, strict=True)):
            np.savez(folder / f"{index}.npz", x=feed[None], labels=label)
        return folder
