"""Whether someone speaks: 120 noisy clips in frames of 512 samples, labelled by the energy of the clean recording.

The network is recurrent over frames and stateful over clips: each clip starts from zero state.
"""

import functools

import numpy as np

from .records import Case, Evaluation, Feed, Run, accuracy
from .sounds import FOLDERS, RATE, recordings, samples
from .store import package_folder

FRAME, CONTEXT, STATE = 512, 64, 128
CLIPS, CALIBRATION_CLIPS = 120, 12
LONGEST_SECONDS = 4
SESSION, CALIBRATION_SESSION = "en_US_f_Allison", "fr_CA_f_June"
MODEL = "silero_vad/data/silero_vad_16k_sequence.onnx"


def clips(seed: int, count: int, session: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clips of silence, speech and silence under noise 0 to 20 dB below the speech, and (frames,) whether it speaks."""
    rng = np.random.default_rng(seed)
    files = recordings(session, 16000)
    sounds, labels = [], []
    for _ in range(count):
        speech = samples(files[rng.integers(len(files))])[: RATE * LONGEST_SECONDS]
        before, after = rng.integers(8000, 32000, 2)
        clean = np.pad(speech, (before, after))
        clean = clean[: len(clean) // FRAME * FRAME]
        loudness = np.sqrt((speech**2).mean())
        labels.append(_speaks(clean, loudness))
        noise = _noise(rng, len(clean))
        noise = noise / np.std(noise) * loudness * 10 ** (-rng.uniform(0, 20) / 20)
        sounds.append((clean + noise).astype(np.float32))
    return sounds, labels


def _speaks(clean: np.ndarray, loudness: float) -> np.ndarray:
    """(frames,) whether most of a frame is louder, over 64 ms, than a tenth of the speech."""
    local = np.sqrt(np.convolve(clean**2, np.ones(1024) / 1024, "same"))
    return np.asarray((local > 0.1 * loudness).reshape(-1, FRAME).mean(axis=1) > 0.5)


def _noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """White noise, brown noise without its drift, or low noise that swells."""
    white = rng.normal(size=length)
    kind = rng.integers(3)
    if kind == 1:
        walk = np.cumsum(white)
        return walk - np.convolve(walk, np.ones(400) / 400, "same")
    if kind == 2:
        swell = 1 + 0.8 * np.sin(2 * np.pi * np.arange(length) / RATE * rng.uniform(0.5, 4))
        return np.convolve(white, np.ones(6) / 6, "same") * swell
    return white


def _feed(sound: np.ndarray) -> Feed:
    """Frames (n, 64 + 512), each led by the end of the one before, and zero state."""
    frames = sound.reshape(-1, FRAME)
    context = np.pad(frames[:-1, -CONTEXT:], ((1, 0), (0, 0)))
    zeros = np.zeros((1, 1, STATE), np.float32)
    return {"input": np.concatenate([context, frames], axis=1), "h": zeros, "c": zeros}


@functools.cache
def _test_set() -> tuple[list[Feed], np.ndarray]:
    sounds, labels = clips(0, CLIPS, SESSION)
    return [_feed(sound) for sound in sounds], np.concatenate(labels)


def _sample() -> Feed:
    """The first second of the first clip."""
    feed = _test_set()[0][0]
    return {**feed, "input": feed["input"][: RATE // FRAME]}


def _judge(run: Run) -> Evaluation:
    from sklearn.metrics import roc_auc_score

    feeds, labels = _test_set()
    probability = np.concatenate([run(feed)["speech_probs"].ravel() for feed in feeds])
    answers = probability > 0.5
    return accuracy(answers == labels, answers, area_under_roc=float(roc_auc_score(labels, np.nan_to_num(probability))))


SILERO_VAD = Case(
    id="silero_vad",
    summary="STFT as convolution, convolutions and an LSTM, accuracy on 18,178 frames of speech in noise",
    packages=("silero-vad", FOLDERS[SESSION], FOLDERS[CALIBRATION_SESSION]),
    locate=lambda: package_folder("silero-vad") / MODEL,
    calibrate=lambda: [_feed(sound) for sound in clips(9, CALIBRATION_CLIPS, CALIBRATION_SESSION)[0]],
    sample=_sample,
    judge=_judge,
)
