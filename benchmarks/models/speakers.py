"""Who speaks: 48 clips of 1.6 s by each of five speakers.

Six clips enrol a speaker; the others go to the nearest mean embedding. The equal error rate is over all pairs of clips.
Calibration takes twelve further clips of each speaker.
"""

import functools

import numpy as np

from .convert import converted
from .records import Case, Evaluation, Feed, Run, accuracy, cosine, first_output
from .sounds import FOLDERS, RATE, mel_energies, recordings, samples

SPEAKERS = (
    ("en_US_f_Allison", "es_MX_f_Allison"),
    ("fr_CA_f_June",),
    ("ru_RU_f_IvrvoiceRU",),
    ("it_IT_m_Carlo",),
    ("it_IT_f_Menardi",),
)
CLIPS, ENROLLED, CALIBRATION = 48, 6, 12
FRAMES, HOP = 160, 160
LEAST_BYTES = int(1.7 * RATE)
LOUDNESS = 10 ** (-30 / 20)
BATCH = 16


def _clips(sessions: tuple[str, ...]) -> np.ndarray:
    """(48 + 12, 160, 40) mel energies of the middles of a speaker's recordings, chosen at random."""
    files = [path for session in sessions for path in recordings(session, LEAST_BYTES)]
    found: list[np.ndarray] = []
    for index in np.random.default_rng(1).permutation(len(files)):
        sound = samples(files[index])
        if len(sound) < FRAMES * HOP:
            continue
        energies = mel_energies(sound * (LOUDNESS / max(np.sqrt((sound**2).mean()), 1e-6)))
        start = max(0, (len(energies) - FRAMES) // 2)
        found.append(energies[start : start + FRAMES])
        if len(found) == CLIPS + CALIBRATION:
            break
    return np.stack(found)


@functools.cache
def _sets() -> tuple[np.ndarray, np.ndarray]:
    """Test clips (5 * 48, 160, 40) and calibration clips (5 * 12, 160, 40), speaker by speaker."""
    clips = [_clips(sessions) for sessions in SPEAKERS]
    return np.concatenate([one[:CLIPS] for one in clips]), np.concatenate([one[CLIPS:] for one in clips])


def _calibrate() -> list[Feed]:
    """Feeds of four clips: each speaker's fill three."""
    clips = _sets()[1]
    return [{"mel": clips[start : start + 4]} for start in range(0, len(clips), 4)]


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where the fractions of accepted strangers and of refused friends meet, as the threshold falls. Both (pairs,)."""
    same = same[np.argsort(-scores)]
    accepted = np.cumsum(~same) / (~same).sum()
    refused = 1 - np.cumsum(same) / same.sum()
    meeting = np.abs(accepted - refused).argmin()
    return float((accepted[meeting] + refused[meeting]) / 2)


def _judge(run: Run) -> Evaluation:
    clips, _ = _sets()
    vectors = np.concatenate([first_output(run({"mel": clips[at : at + BATCH]})) for at in range(0, len(clips), BATCH)])
    speaker = np.repeat(np.arange(len(SPEAKERS)), CLIPS)
    enrolled = np.tile(np.arange(CLIPS) < ENROLLED, len(SPEAKERS))
    centres = vectors[enrolled].reshape(len(SPEAKERS), ENROLLED, -1).mean(axis=1)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    nearest = (vectors[~enrolled] @ centres.T).argmax(axis=1)
    pairs = np.triu_indices(len(vectors), 1)
    error = equal_error_rate((vectors @ vectors.T)[pairs], (speaker[:, None] == speaker)[pairs])
    return accuracy(nearest == speaker[~enrolled], vectors, equal_error_rate=error)


RESEMBLYZER = Case(
    id="resemblyzer",
    summary="three LSTM layers and a speaker embedding, accuracy over five speakers on 210 clips",
    packages=("resemblyzer", *FOLDERS.values()),
    locate=lambda: converted("speaker", "resemblyzer", "resemblyzer/pretrained.pt"),
    calibrate=_calibrate,
    sample=lambda: {"mel": _sets()[0][:1]},
    judge=_judge,
    agree=cosine,
    agreement_name="cosine",
)
