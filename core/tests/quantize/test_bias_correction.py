import attrs
import numpy as np
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from pumice.quantize import bias_correction
from pumice.quantize.bias_correction import sure_mean
from pumice.quantize.context import QuantizeContext

CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
STEEP = f"""(float[N,4,8,8] x) => (float[N,4,8,8] y) {{
    a = {CONV} (x, u, b)  ah = HardSwish (a)  c = {CONV} (ah, u, b)  ch = HardSwish (c)
    d = {CONV} (ch, u, b) dh = HardSwish (d)  y = {CONV} (dh, u, b) }}"""
LAYERS = ["a", "c", "d", "y"]


def pages(count=12):
    """Mostly one colour, as print is: its rounding error is the same nearly everywhere."""
    rng = np.random.default_rng(3)
    image = np.full((count, 1, 4, 8, 8), 0.37, np.float32)
    image += (rng.random(image.shape) < 0.05) * rng.normal(0, 9, image.shape).astype(np.float32)
    return [{"x": sample} for sample in image]


def steep(lab):
    rng = np.random.default_rng(5)
    return lab.build(STEEP, u=rng.normal(0.05, 0.25, (4, 4, 3, 3)).astype(np.float32), b=(4,))


def means(model, feeds, lab, names):
    from pumice.measure import pick_runtime

    session = pick_runtime().open(model, outputs=names)
    runs = [session.run(feed) for feed in feeds]
    return {name: np.mean([run[name].mean(axis=(0, 2, 3)) for run in runs], axis=0) for name in names}


def test_every_layer_writes_what_it_wrote_on_average(lab, monkeypatch):
    model, feeds = steep(lab), pages()
    monkeypatch.setattr(bias_correction, "sure_mean", lambda differences, counts: differences.mean(axis=0))
    monkeypatch.setattr("pumice.quantize.engine.correct_biases", bias_correction._in_sequence)
    mended, _ = lab.quantized(model, feeds, equalize=False)
    plain, _ = lab.quantized(model, feeds, equalize=False, correct_bias=False)
    wanted = means(model, feeds, lab, LAYERS[:-1])
    shifts = [
        max(np.abs(found[name] - wanted[name]).max() for name in wanted)
        for found in (means(mended, feeds, lab, LAYERS[:-1]), means(plain, feeds, lab, LAYERS[:-1]))
    ]
    assert shifts[0] < shifts[1] / 20  # the rest are ties that one step of the bias turns the other way


def test_steep_activations_do_not_multiply_what_rounding_shifts(lab):
    model, feeds = steep(lab), pages()
    exact = lab.outputs(model, feeds)
    plain, _ = lab.quantized(model, feeds, correct_bias=False)
    mended, _ = lab.quantized(model, feeds)
    gained = lab.noise_db(exact, lab.outputs(mended, feeds)) - lab.noise_db(exact, lab.outputs(plain, feeds))
    assert gained > 3


def test_a_correction_that_takes_the_outputs_further_away_is_undone(lab, monkeypatch):
    model, feeds = steep(lab), pages()
    kept, _ = lab.quantized(model, feeds)
    ratios = iter([1.0, 2.0])
    monkeypatch.setattr(QuantizeContext, "drift", lambda *_, **__: Fixed(next(ratios)))
    undone, _ = lab.quantized(model, feeds)
    monkeypatch.setattr("pumice.quantize.engine.correct_biases", lambda *_: None)
    without, _ = lab.quantized(model, feeds)
    biases = [
        {n: v.const_value.numpy().tobytes() for n, v in m.graph.initializers.items()} for m in (kept, undone, without)
    ]
    assert biases[1] == biases[2] != biases[0]


@attrs.frozen
class Fixed:
    ratio: float


samples = arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-1e3, 1e3))


@given(samples)
def test_a_mean_is_never_enlarged_nor_turned_round(differences):
    mean, found = differences.mean(axis=0), sure_mean(differences, [5] * len(differences))
    assert (np.abs(found) <= np.abs(mean) + 1e-9).all()
    assert (found * mean >= -1e-9).all()


def test_what_all_samples_agree_on_is_believed_and_noise_is_not():
    rng = np.random.default_rng(0)
    agreed, noise = np.full((64, 1), 0.5), rng.normal(0, 1, (64, 200))
    np.testing.assert_allclose(sure_mean(agreed, [3] * 64), 0.5)
    assert np.mean(sure_mean(noise, [3] * 64) ** 2) < 0.6 * np.mean(noise.mean(axis=0) ** 2)


def test_samples_count_by_their_size():
    np.testing.assert_allclose(sure_mean(np.array([[1.0], [1.0], [1.0]]), [1, 0, 1000]), 1.0)
    assert sure_mean(np.array([[9.0], [1.0]]), [0, 10]) == 1.0
    assert sure_mean(np.array([[9.0]]), [0]) == 0.0


def test_infinite_values_correct_nothing():
    assert (sure_mean(np.array([[np.inf, 1.0]]), [2]) == 0).all()
