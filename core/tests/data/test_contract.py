"""The readers of core keep the contract of every reader."""

import json

import numpy as np

from pumice.data.readers import FolderOfPartsReader
from pumice.data.text import TextReader
from pumice.testing import DatasetReaderContract


class TestText(DatasetReaderContract):
    strategy = TextReader

    def write(self, folder, feeds, labels):
        path = folder / "data.jsonl"
        rows = zip(feeds.tolist(), labels.tolist(), strict=True)
        path.write_text("".join(json.dumps({"x": x, "label": label}) + "\n" for x, label in rows))
        return path


class TestFolderOfParts(DatasetReaderContract):
    strategy = FolderOfPartsReader

    def write(self, folder, feeds, labels):
        np.savez(folder / "calibration.npz", x=feeds[:1], labels=labels[:1])
        np.savez(folder / "test.npz", x=feeds, labels=labels)
        return folder
