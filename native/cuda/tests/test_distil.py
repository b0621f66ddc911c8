"""Distillation on a GPU that is not there: the same student as on the CPU."""

import types

import numpy as np
import pytest

import pumice
from pumice.data import open_dataset
from pumice.testing.models import random_feeds, tiny_cnn
from pumice_cuda.transfers import counting


@pytest.fixture
def present(gpu, monkeypatch):
    """The fake CuPy, taken for a GPU by everything but the kernels."""
    gpu.cuda.runtime.memGetInfo = lambda: (1 << 40, 1 << 40)
    gpu.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    monkeypatch.setattr("pumice_cuda.runtime.strategy.CudaRuntime.available", lambda _: None)
    return gpu


def student(where, loss, **knobs):
    model = tiny_cnn()
    samples = {"x": np.concatenate([feeds["x"] for feeds in random_feeds(24)])}
    step = {"use": "distil", "width": 0.5, "device": where, "epochs": 2, "batch": 8, "losses": [loss], **knobs}
    return pumice.compress(model, open_dataset(samples, model), {"step": [step]}, measure=False)


def weights(result):
    return {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "reverse-kl", "scores": "logits"},
        *[
            {"name": name}
            for name in (
                "sequence",
                "feature-mse",
                "feature-cosine",
                "pkt",
                "attention-transfer",
                "relational-distance",
                "relational-angle",
                "attribution",
            )
        ],
        {"name": "attribution", "method": "integrated", "over": "channels"},
    ],
    ids=lambda loss: loss["name"],
)
def test_a_student_learns_on_the_gpu_what_it_learns_on_the_cpu(present, loss):
    here = weights(student("cpu", loss))
    with counting() as moved:
        there = weights(student("cuda", loss))
    assert moved.into > 0
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-3, atol=1e-4)


def test_what_only_the_cpu_can_do_is_done_there_with_a_note(present):
    result = student("cuda", {"name": "soft-targets"}, stream=True)
    assert any("trained on the CPU: the knob 'stream'" in note for note in result.notes)
