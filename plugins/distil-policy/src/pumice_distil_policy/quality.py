"""How good generated text is, as the teacher and as counting see it.

    perplexity     exp of the mean of -log p(token | those before), p of the teacher: how plausible
    distinct-n     different n-grams over all n-grams of all sequences: how varied
    repetition     share of the n-grams of a sequence that it held before: how caught in loops
    drift          the teacher's mean -log p in each part of the sequence over that of real text in the same part

Drift above 1 that grows along the sequence is exposure bias: errors make more errors. A generator that says one good
sentence for ever has a low perplexity and no variety, so the figures belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from pumice.distil.teacher import Answers
from pumice.errors import DataError
from pumice_distil_policy.generation import Samples

Array = NDArray[Any]
PARTS = 4
"""Parts of a sequence that drift is told for."""


@attrs.frozen(kw_only=True)
class Quality:
    """Of a set of generated sequences."""

    perplexity: float
    distinct: Mapping[int, float]
    """By n."""
    repetition: float
    """Of 4-grams."""
    drift: tuple[float, ...]
    """Part by part, first to last."""


def quality(samples: Samples, teacher: Answers, name: str, real: Array, batch: int = 16) -> Quality:
    """
    Args:
        samples: what was generated.
        teacher: gives scores (N, T, C) as its first value for tokens (N, T).
        name: of the teacher's input.
        real: tokens (M, T) of real text, of the same length.
        batch: sequences that the teacher is run on at a time.

    Raises:
        DataError: real text of another length.
    """
    if real.shape[1] != samples.tokens.shape[1]:
        raise DataError(
            f"generated sequences of {samples.tokens.shape[1]} tokens cannot be compared with real ones of "
            f"{real.shape[1]}: give text of the same length"
        )
    ours, theirs = (_surprise(tokens, samples.prompt, teacher, name, batch) for tokens in (samples.tokens, real))
    made = samples.tokens[:, samples.prompt :]
    parts = zip(np.array_split(ours, PARTS, axis=1), np.array_split(theirs, PARTS, axis=1), strict=True)
    return Quality(
        perplexity=math.exp(ours.mean()),
        distinct={n: distinct(made, n) for n in (1, 2, 3, 4)},
        repetition=float(np.mean([1 - distinct(row[None], 4) for row in made])),
        drift=tuple(float(own.mean() / other.mean()) for own, other in parts),
    )


def distinct(tokens: Array, n: int) -> float:
    """Different n-grams of sequences (N, T) over all of them; 0 where they are shorter than n."""
    if tokens.shape[1] < n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def _surprise(tokens: Array, prompt: int, teacher: Answers, name: str, batch: int) -> Array:
    """-log p of every token after the prompt, (N, T - prompt)."""
    found = []
    for at in range(0, len(tokens), batch):
        part = tokens[at : at + batch]
        scores = next(iter(teacher.run({name: part}).values()))[:, prompt - 1 : -1].astype(np.float64)
        shifted = scores - scores.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, part[:, prompt:, None], axis=-1)[..., 0]
        found.append(np.log(np.exp(shifted).sum(axis=-1)) - chosen)
    return np.concatenate(found)
