"""The order in which samples are seen, and their batches, made ahead of time by threads.

Epoch e visits the samples in the order that the generator (seed, e) shuffles them into; batches are consecutive runs of
it, and an incomplete last one is left out unless it is the only one. Where in an epoch a run resumes changes nothing of
what follows. Samples that do not stack (pictures of different widths) make several batches of one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import attrs
import numpy as np

from pumice.data import Batch, Dataset
from pumice.train import augmentation

THREADS = 2
AHEAD = 4
"""Steps whose batches are made before they are wanted."""


@attrs.frozen(eq=False)
class Portion:
    """What one forward run sees."""

    batch: Batch
    mixed: float | None = None
    """With mixup, the share of a sample's own label; the rest belongs to the label after it."""


@attrs.frozen(eq=False)
class Feeder:
    """Shuffled, augmented batches of a dataset."""

    dataset: Dataset
    batch: int
    seed: int = 0
    augment: Sequence[str] = ()

    def __attrs_post_init__(self) -> None:
        augmentation.check(self.augment)

    @property
    def steps(self) -> int:
        """Per epoch."""
        return max(1, self.dataset.count() // self.batch)

    def epoch(self, number: int, start: int = 0) -> Iterator[list[Portion]]:
        """The steps of an epoch from `start` on.

        Raises:
            DataError: a sample that cannot be read, does not fit or cannot be augmented.
        """
        order = np.random.default_rng([self.seed, number]).permutation(self.dataset.count())
        chosen = [order[step * self.batch : (step + 1) * self.batch] for step in range(start, self.steps)]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="pumice-data") as pool:
            waiting: deque[Future[list[Portion]]] = deque()
            try:
                for indices in chosen:
                    waiting.append(pool.submit(self._portions, number, indices))
                    if len(waiting) > AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _portions(self, epoch: int, indices: np.ndarray) -> list[Portion]:
        found, at = [], 0
        for batch in self.dataset.select(indices).batches(len(indices)):
            found.append(self._augmented(batch, epoch, indices[at : at + batch.size]))
            at += batch.size
        return found

    def _augmented(self, batch: Batch, epoch: int, indices: np.ndarray) -> Portion:
        if not self.augment:
            return Portion(batch)
        (name,) = list(batch.feeds)[:1]
        draws = [augmentation.generator(self.seed, epoch, int(i)) for i in indices]
        pictures = augmentation.augmented(batch.feeds[name], self.augment, draws, name)
        share = None
        if "mixup" in self.augment and len(pictures) > 1:
            share = augmentation.share(draws[0])
            pictures = augmentation.mixed(pictures, share)
        return Portion(attrs.evolve(batch, feeds={**batch.feeds, name: pictures}), share)
