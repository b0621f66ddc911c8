"""Finding lines of text on a page: rendered lines over photographs, judged by boxes.

The detector gives a probability per pixel. Its connected regions above 0.3, grown to undo the shrinking it was trained
with, are matched one to one with the true boxes; a match needs an intersection over union of 0.5. The metric is the
harmonic mean of precision and recall over all pages.
"""

import functools
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .lettering import FONTS, font_files, line
from .records import Case, Evaluation, Feed, Run, first_output, overlap
from .store import package_folder

DETECTOR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
PHOTOGRAPHS = ("grass.png", "gravel.png", "brick.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg")
SIZE = 640
PAGES, CALIBRATION_PAGES = 60, 8
THRESHOLD, LEAST_MEAN, GROWTH, LEAST_SIDE = 0.3, 0.5, 1.6, 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""


@functools.cache
def _photographs() -> list[Image.Image]:
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]


def page(seed: int) -> tuple[np.ndarray, list[Box]]:
    """A page (640, 640, 3) uint8 of up to a dozen lines that keep clear of each other, and their boxes."""
    rng = random.Random(seed)
    image = _background(rng)
    draw = ImageDraw.Draw(image)
    boxes: list[Box] = []
    for _ in range(40):
        if len(boxes) >= rng.randint(6, 12):
            break
        font = ImageFont.truetype(rng.choice(font_files()), rng.randint(14, 44))
        text = line(rng)
        left, top, right, bottom = font.getbbox(text)
        width, height = int(right - left), int(bottom - top)
        if width > SIZE - 20:
            continue
        x, y = rng.randint(8, SIZE - width - 8), rng.randint(8, SIZE - height - 8)
        box = (x, y, x + width, y + height)
        if any(_touches(box, other) for other in boxes):
            continue
        ink = _ink(image, draw, box, rng)
        draw.text((x - left, y - top), text, fill=ink, font=font)
        boxes.append(box)
    noise = np.random.default_rng(seed).normal(0, 6, (SIZE, SIZE, 3))
    return np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8), boxes


def _background(rng: random.Random) -> Image.Image:
    """A random square of a random photograph, scaled to the page."""
    photograph = _photographs()[rng.randrange(len(PHOTOGRAPHS))]
    side = rng.randint(min(photograph.size) // 2, min(photograph.size))
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    square = photograph.crop((left, top, left + side, top + side))
    return square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _touches(box: Box, other: Box) -> bool:
    apart_x = box[2] + 14 < other[0] or other[2] + 14 < box[0]
    apart_y = box[3] + 10 < other[1] or other[3] + 10 < box[1]
    return not (apart_x or apart_y)


def _ink(image: Image.Image, draw: ImageDraw.ImageDraw, box: Box, rng: random.Random) -> tuple[int, ...]:
    """A colour that stands out: on a light label one time in three, else against the mean of what lies beneath."""
    left, top, right, bottom = (int(side) for side in box)
    if rng.random() < 0.35:
        label = tuple(rng.randint(140, 255) for _ in range(3))
        draw.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill=label)
        return tuple(rng.randint(0, 90) for _ in range(3))
    if np.asarray(image)[top:bottom, left:right].mean() > 125:
        return tuple(rng.randint(0, 40) for _ in range(3))
    return tuple(rng.randint(200, 255) for _ in range(3))


def _input(pixels: np.ndarray) -> np.ndarray:
    """(1, 3, 640, 640): BGR, ImageNet's mean and deviation."""
    values = pixels[..., ::-1].astype(np.float32) / 255
    return np.ascontiguousarray(((values - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None].astype(np.float32))


def text_boxes(probability: np.ndarray) -> list[Box]:
    """Boxes of the connected regions of a probability map (height, width)."""
    from scipy import ndimage

    labels, _ = ndimage.label(probability > THRESHOLD)
    boxes: list[Box] = []
    for number, region in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = region
        width, height = columns.stop - columns.start, rows.stop - rows.start
        inside = labels[region] == number
        if min(width, height) < LEAST_SIDE or probability[region][inside].mean() < LEAST_MEAN:
            continue
        edge = width * height * GROWTH / (2 * (width + height))
        boxes.append((columns.start - edge, rows.start - edge, columns.stop + edge, rows.stop + edge))
    return boxes


def _intersection_over_union(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    joint = width * height
    return joint / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - joint)


def matches(found: list[Box], wanted: list[Box]) -> int:
    """How many wanted boxes get a found box of their own, each taking the best one left."""
    left = set(range(len(found)))
    for box in wanted:
        ranked = [(_intersection_over_union(box, found[number]), number) for number in left]
        if ranked and max(ranked)[0] >= 0.5:
            left.remove(max(ranked)[1])
    return len(found) - len(left)


@functools.cache
def _pages() -> tuple[list[np.ndarray], list[list[Box]]]:
    made = [page(seed) for seed in range(PAGES)]
    return [_input(pixels) for pixels, _ in made], [boxes for _, boxes in made]


@functools.cache
def _calibration() -> list[Feed]:
    return [{"x": _input(page(1000 + number)[0])} for number in range(CALIBRATION_PAGES)]


def _judge(run: Run) -> Evaluation:
    inputs, wanted = _pages()
    maps = [first_output(run({"x": x}))[0, 0] for x in inputs]
    found = [text_boxes(probability) for probability in maps]
    hits = np.array([matches(*pair) for pair in zip(found, wanted, strict=True)])
    boxes = np.array([len(a) + len(b) for a, b in zip(found, wanted, strict=True)])
    return Evaluation(
        metric="box hmean",
        value=float(2 * hits.sum() / max(1, boxes.sum())),
        scores=2 * hits / np.maximum(1, boxes),
        answers=np.stack(maps) > THRESHOLD,
    )


OCR_DET = Case(
    id="ocr_det_v4",
    summary="text detector with ConvTranspose and Resize, harmonic mean of box precision and recall on 60 pages",
    packages=("rapidocr-onnxruntime", *FONTS),
    locate=lambda: package_folder("rapidocr-onnxruntime") / DETECTOR,
    calibrate=_calibration,
    sample=lambda: _calibration()[0],
    judge=_judge,
    agree=overlap,
    agreement_name="map overlap",
)
