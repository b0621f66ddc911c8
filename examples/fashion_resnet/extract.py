"""Make `data/` from the Debian package `dataset-fashion-mnist` (Fashion-MNIST, Zalando SE, Expat licence).

    apt-get install dataset-fashion-mnist
    python examples/fashion_resnet/extract.py [FOLDER WITH THE FOUR .gz FILES]

Nothing is chosen by looking: the first 512 training images calibrate, the first 2,500 official test images measure.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
SUBSETS = {"calibration": ("train", 512), "test": ("t10k", 2500)}


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header (16 bytes for images, 8 for labels)."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def extract(source: Path, target: Path) -> None:
    """Write both files: `x` float32 (samples, 1, 28, 28) between -1 and 1, `labels` int64 (samples,)."""
    target.mkdir(exist_ok=True)
    for subset, (part, count) in SUBSETS.items():
        images = read_idx(source / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:count]
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz", 8)[:count].astype(np.int64)
        x = images.astype(np.float32) / np.float32(255) * 2 - 1
        np.savez_compressed(target / f"{subset}.npz", x=x, labels=labels)
        print(f"{subset}: {count} images, {np.bincount(labels, minlength=10).tolist()} of each class")


if __name__ == "__main__":
    extract(Path(sys.argv[1]) if len(sys.argv) > 1 else INSTALLED, Path(__file__).parent / "data")
