"""Recorded speech for the models that listen: telephone prompts by five speakers, at 16 kHz."""

import wave
from pathlib import Path

import numpy as np

from .store import package_folder

RATE = 16000
FOLDERS = {
    "en_US_f_Allison": "asterisk-core-sounds-en-wav",
    "es_MX_f_Allison": "asterisk-core-sounds-es-wav",
    "fr_CA_f_June": "asterisk-core-sounds-fr-wav",
    "it_IT_f_Menardi": "asterisk-prompt-it-menardi-wav",
    "it_IT_m_Carlo": "asterisk-core-sounds-it-wav",
    "ru_RU_f_IvrvoiceRU": "asterisk-core-sounds-ru-wav",
}
"""Recording sessions, and the package of each."""

NOT_SPEECH = ("silence", "beep", "tone", "tt-monkeys", "ascending", "descending")


def recordings(session: str, least_bytes: int) -> list[Path]:
    """The files of a session that hold speech and more than `least_bytes`, in the order of their names."""
    root = package_folder(FOLDERS[session]) / "usr/share/asterisk/sounds"
    found = (
        path
        for path in (root / session).rglob("*.wav")
        if path.stat().st_size > least_bytes
        and not any(word in path.relative_to(root).as_posix() for word in NOT_SPEECH)
    )
    return sorted(found, key=str)


def samples(path: Path) -> np.ndarray:
    """(n,) float32 in [-1, 1] at 16 kHz of a mono 16-bit recording."""
    from scipy.signal import resample_poly

    with wave.open(str(path)) as recording:
        if recording.getnchannels() != 1 or recording.getsampwidth() != 2:
            raise ValueError(f"{path} is not mono with 16 bits")
        values = np.frombuffer(recording.readframes(recording.getnframes()), "<i2").astype(np.float32) / 32768
        rate = recording.getframerate()
    return values if rate == RATE else resample_poly(values, RATE // rate, 1).astype(np.float32)


def mel_energies(sound: np.ndarray, window: int = 400, hop: int = 160, bands: int = 40) -> np.ndarray:
    """(frames, bands) energies in triangular bands of equal width on Slaney's mel scale, each of unit area."""
    padded = np.pad(sound, window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    energies = np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], axis=1)) ** 2
    return (energies @ _triangles(window, bands).T).astype(np.float32)


def _triangles(window: int, bands: int) -> np.ndarray:
    """(bands, bins) weights."""
    edges = _mel_to_hertz(np.linspace(0, _hertz_to_mel(RATE / 2), bands + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.linspace(0, RATE / 2, window // 2 + 1)
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))


def _hertz_to_mel(hertz: float) -> float:
    """Linear up to 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) * 27 / np.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
