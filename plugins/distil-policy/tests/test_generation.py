"""Generation with a cache is the whole model run position by position, and what it makes can be learned from."""

import attrs
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from pumice import compress
from pumice.data import open_dataset
from pumice.distil.architectures import built
from pumice.errors import DataError, ModelError
from pumice.plan import compile_plan
from pumice.prune.sizes import with_sizes
from pumice.recipe import Recipe
from pumice.steps import Distil
from pumice.train import Parameters
from pumice.train.feeding import Feeder
from pumice_distil_policy import OnPolicy
from pumice_distil_policy.generation import Decoder, Samples, sample
from pumice_distil_policy.quality import distinct, quality
from pumice_distil_policy.sampling import SampledBatch

LENGTH = 7
TOKENS = np.random.default_rng(0).integers(0, 11, (40, LENGTH))
DRAWS = np.random.default_rng


WORDS = """<ir_version: 10, opset_import: ["" : 21]>
words (int64[N, T] ids) => (float[N, T, 11] logits) <float[11, 11] table = {%s}> { logits = Gather(table, ids) }"""


def network(family, **sizes):
    """Of a family, from sequences of 11 words to scores of each."""
    like = ir.from_proto(onnx.parser.parse_model(WORDS % ", ".join(["0"] * 121)))
    return with_sizes(built({"family": family, **sizes}, like))


def gpt(**sizes):
    return network("gpt", **{"width": 8, "heads": 2, "layers": 2, **sizes})


@pytest.fixture
def decoder():
    return Decoder.of(compile_plan(gpt()), LENGTH)


def test_every_position_has_the_scores_of_the_whole(decoder):
    whole = compile_plan(gpt()).run({"ids": TOKENS[:3]})["logits"]
    generation = decoder.start()
    for position in range(LENGTH):
        np.testing.assert_allclose(generation.step(TOKENS[:3, position]), whole[:, position], atol=1e-4)


def test_other_weights_generate_otherwise(decoder):
    values = {"head0.b": np.arange(11, dtype=np.float32)}
    plain, other = (decoder.start(known).step(TOKENS[:3, 0]) for known in ({}, values))
    np.testing.assert_allclose(other - plain, np.tile(np.arange(11), (3, 1)), atol=1e-4)


def test_generations_do_not_disturb_each_other(decoder):
    one, two = decoder.start(), decoder.start()
    first = one.step(TOKENS[:3, 0])
    two.step(TOKENS[3:6, 0])
    two.step(TOKENS[3:6, 1])
    alone = decoder.start()
    alone.step(TOKENS[:3, 0])
    np.testing.assert_array_equal(one.step(TOKENS[:3, 1]), alone.step(TOKENS[:3, 1]))
    assert first.shape == (3, 11)


@pytest.mark.parametrize("family", ["bert", "lstm"])
def test_a_model_that_looks_ahead_or_carries_a_state_is_refused(family):
    sizes = {"width": 8, "heads": 2} if family == "bert" else {"width": 8}
    with pytest.raises(ModelError, match="cannot generate with a cache"):
        Decoder.of(compile_plan(network(family, layers=1, **sizes)), LENGTH)


def test_samples_begin_with_their_prompts(decoder):
    found = sample([decoder.start()], [1.0], TOKENS[:5, :3], LENGTH, DRAWS(1))
    np.testing.assert_array_equal(found.tokens[:, :3], TOKENS[:5, :3])
    assert found.tokens.shape == (5, LENGTH)
    assert found.tokens.max() < 11


def test_what_was_drawn_has_the_probability_that_is_told(decoder):
    found = sample([decoder.start()], [1.0], TOKENS[:5, :3], LENGTH, DRAWS(1))
    scores = compile_plan(gpt()).run({"ids": found.tokens})["logits"].astype(np.float64)
    rows = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    expected = np.take_along_axis(rows[:, 2:-1], found.tokens[:, 3:, None], 2)[..., 0]
    np.testing.assert_allclose(found.log_student, expected, atol=1e-4)
    np.testing.assert_allclose(found.log_drawn, found.log_student)


def test_tokens_are_drawn_as_often_as_they_are_likely(decoder):
    prompts = np.zeros((4000, 1), np.int64)
    found = sample([decoder.start()], [1.0], prompts, 3, DRAWS(2)).tokens[:, 1]
    scores = decoder.start().step(np.zeros(1, np.int64))[0].astype(np.float64)
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(np.bincount(found, minlength=11) / 4000, expected, atol=0.03)


def test_a_mixture_has_the_shares_of_its_models(decoder):
    other = Decoder.of(compile_plan(gpt(width=4, layers=1)), LENGTH)
    found = sample([decoder.start(), other.start()], [0.25, 0.75], TOKENS[:5, :3], LENGTH, DRAWS(1))
    by_other = sample([other.start()], [1.0], TOKENS[:5, :3], LENGTH, DRAWS(1))
    assert (found.log_drawn >= np.log(0.25) + found.log_student - 1e-9).all()
    assert found.log_drawn.shape == by_other.log_drawn.shape


# --- learning from what was generated ---------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Likely(OnPolicy):
    """Makes what was drawn less or more likely, and counts what it was given."""

    name = "likely"

    def value_and_grad(self, outputs, batch):
        assert batch.samples is not None
        ((name, target),) = batch.targets.items()
        difference = outputs[name] - target.value
        return float(np.square(difference).mean()), {name: difference * (2 / difference.size)}


def feeder(**knobs):
    model = gpt()
    loss = Likely(prompt=3, **knobs)
    data = open_dataset({"ids": TOKENS}, model)
    parameters = Parameters.of(compile_plan(model))
    return loss.feeder(Feeder(data, 8), model, gpt(layers=1), parameters)


def test_every_step_sees_the_data_and_what_the_student_makes_of_it():
    portions = next(feeder().epoch(0))
    plain, drawn = (portion.batch for portion in portions)
    assert isinstance(drawn, SampledBatch)
    np.testing.assert_array_equal(drawn.feeds["ids"][:, :3], plain.feeds["ids"][:, :3])
    assert (drawn.feeds["ids"] != plain.feeds["ids"]).any()


def test_samples_are_used_again_as_often_as_is_said():
    drawn = [portions[1].batch for portions in feeder(reuse=2).epoch(0)]
    assert drawn[0] is drawn[1]
    assert drawn[1] is not drawn[2]


def test_the_student_draws_with_its_present_weights():
    plain, moved = feeder(teacher_share=0.0), feeder(teacher_share=0.0)
    moved.parameters.values["head0.b"][4] = 50.0
    tokens = [next(each.epoch(0))[1].batch.feeds["ids"][:, 3:] for each in (plain, moved)]
    assert (tokens[1] == 4).all()
    assert not (tokens[0] == 4).all()


def test_a_prompt_as_long_as_the_samples_is_refused():
    with pytest.raises(DataError, match="no longer than the prompt of 9"):
        next(attrs.evolve(feeder(), settings=Likely(prompt=9)).epoch(0))


def test_a_recipe_learns_on_policy():
    teacher = gpt(layers=3)
    step = Distil(losses=(Likely(prompt=3),), layers=0.67, epochs=2, batch=8, lr=0.01)
    result = compress(teacher, {"ids": TOKENS}, Recipe([step]), runtime="reference", measure=False)
    (curve,) = [e.details["losses"] for e in result.ledger.of("distil") if "losses" in e.details]
    assert curve[-1] < curve[0]


# --- how good it is ---------------------------------------------------------------------------------------------------


def test_variety_is_counted_over_all_sequences():
    assert distinct(np.array([[1, 2, 1, 2], [1, 2, 1, 2]]), 2) == pytest.approx(2 / 6)
    assert distinct(np.array([[1, 2, 3, 4]]), 2) == 1
    assert distinct(np.array([[1]]), 2) == 0


class Uniform:
    """A teacher that finds every one of 8 words as likely."""

    def run(self, feeds):
        return {"logits": np.zeros((*feeds["ids"].shape, 8), np.float32)}


def test_quality_of_text_that_any_word_fits():
    tokens = np.tile(np.array([0, 1, 2, 3]), (2, 4))
    found = quality(Samples(tokens, 2, np.zeros(1), np.zeros(1)), Uniform(), "ids", tokens)
    assert found.perplexity == pytest.approx(8)
    assert found.drift == pytest.approx((1, 1, 1, 1))
    assert found.repetition == pytest.approx(1 - 4 / 11)


def test_text_of_another_length_is_no_measure():
    samples = Samples(np.zeros((2, 5), np.int64), 2, np.zeros(1), np.zeros(1))
    with pytest.raises(DataError, match="of the same length"):
        quality(samples, Uniform(), "ids", np.zeros((2, 6), np.int64))
