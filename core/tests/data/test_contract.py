"""The readers of core keep the contract of every reader."""

import numpy as np

from pumice.data.readers import FolderOfPartsReader
from pumice.testing import DatasetReaderContract


class TestFolderOfParts(DatasetReaderContract):
    strategy = FolderOfPartsReader

    def write(self, folder, feeds, labels):
        np.savez(folder / "calibration.npz", x=feeds[:1], labels=labels[:1])
        np.savez(folder / "test.npz", x=feeds, labels=labels)
        return folder
