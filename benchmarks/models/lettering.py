"""Rendered lines of text, labelled by construction: random words, fonts, colours, tilt, blur and noise.

All randomness comes from the `random.Random` handed in, so that a seed fixes a set. Rendering depends on Pillow's
FreeType; sets made by different versions differ by a grey level here and there.
"""

import functools
import lzma
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .store import package_folder

TEXTS = Path(__file__).parent / "texts"
FONTS = ("fonts-dejavu-core", "fonts-liberation")


@functools.cache
def words() -> tuple[str, ...]:
    """The running words of Python's language reference, 2 to 10 letters each, with repeats."""
    with lzma.open(TEXTS / "words.txt.xz", "rt", encoding="utf8") as stream:
        return tuple(stream.read().split())


@functools.cache
def font_files() -> tuple[Path, ...]:
    """Every DejaVu and Liberation face, in the order of their installed paths."""
    faces = [path for name in FONTS for path in (package_folder(name) / "usr/share/fonts/truetype").glob("*/*.ttf")]
    return tuple(sorted(faces, key=lambda path: path.parts[-2:]))


def line(rng: random.Random, most_words: int = 3) -> str:
    """One to `most_words` words, followed by a number three times in ten."""
    text = " ".join(rng.choice(words()) for _ in range(rng.randint(1, most_words)))
    if rng.random() < 0.3:
        text += f" {rng.randint(0, 9999)}"
    return text


def render(text: str, rng: random.Random, hardness: float = 1.0) -> np.ndarray:
    """A picture (height, width, 3) uint8 of `text`; `hardness` scales tilt, loss of resolution, blur and noise."""
    font = ImageFont.truetype(rng.choice(font_files()), rng.randint(18, 40))
    left, top, right, bottom = font.getbbox(text)
    margin_x, margin_y = rng.randint(4, 10), rng.randint(3, 7)
    paper = tuple(rng.randint(150, 255) for _ in range(3))
    ink = tuple(rng.randint(0, 100) for _ in range(3))
    if rng.random() < 0.3:
        paper, ink = ink, paper
    size = (int(right - left + 2 * margin_x), int(bottom - top + 2 * margin_y))
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margin_x - left, margin_y - top), text, fill=ink, font=font)
    image = image.rotate(rng.uniform(-2, 2) * hardness, Image.Resampling.BICUBIC, fillcolor=paper)
    image = _soften(image, rng.uniform(1, 1 + 1.3 * hardness))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8 * hardness)))
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(rng.randint(0, 2**31))
    return np.clip(pixels + noise.normal(0, rng.uniform(2, 18) * hardness, pixels.shape), 0, 255).astype(np.uint8)


def _soften(image: Image.Image, factor: float) -> Image.Image:
    """Lose resolution: down by `factor` and up again."""
    width, height = image.size
    smaller = (max(8, int(width / factor)), max(8, int(height / factor)))
    return image.resize(smaller, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BILINEAR)


def rendered_lines(
    seed: int, count: int, most_words: int = 3, hardness: float = 1.0
) -> tuple[list[str], list[np.ndarray]]:
    """(texts, pictures): all texts are drawn before the first picture."""
    rng = random.Random(seed)
    texts = [line(rng, most_words) for _ in range(count)]
    return texts, [render(text, rng, hardness) for text in texts]


def greedy_ctc(scores: np.ndarray, alphabet: Sequence[str]) -> str:
    """The best path of CTC scores (time, 1 + characters): repeats merged, blanks (class 0) dropped."""
    best = scores.argmax(axis=-1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(alphabet[index - 1] for index in best[changed & (best != 0)])


def edit_distance(found: Sequence, wanted: Sequence) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    row = list(range(len(wanted) + 1))
    for i, left in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
