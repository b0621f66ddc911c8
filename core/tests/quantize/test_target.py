import pytest

from pumice.errors import PluginError
from pumice.knobs import Choice
from pumice.quantize.target import Target, names
from pumice.steps import Quantize

KNOWN_MODES = {"static", "dynamic", "weight-only"}


@pytest.mark.parametrize("name", names())
def test_every_profile_can_be_read(name):
    target = Target.named(name)
    assert target.summary
    assert {"Conv", "Gemm", "MatMul"} <= target.layers.keys()
    for rule in target.layers.values():
        assert rule.modes
        assert KNOWN_MODES.issuperset(rule.modes)
        assert rule.output in {"required", "optional", "none"}
    assert target.channel_scales in {"everywhere", "free", "none"}
    assert target.bias in {"int32", "float32"}


def test_the_quantize_step_offers_every_profile():
    domain = Quantize.knobs()["target"].domain
    assert isinstance(domain, Choice)
    assert list(domain.options) == names()


def test_a_profile_states_only_what_differs_from_its_base():
    plain, narrow = Target.named("ort-cpu"), Target.named("ort-cpu-no-vnni")
    assert narrow.layers == plain.layers
    assert (narrow.pair_saturation, plain.pair_saturation) == (True, False)


def test_tensorrt_has_no_zero_points_and_no_integer_biases():
    target = Target.named("tensorrt")
    assert target.activation_symmetric
    assert target.activation_type == "int8"
    assert target.bias == "float32"


def test_an_unknown_profile_is_refused_with_the_nearest():
    with pytest.raises(PluginError, match="did you mean 'openvino'"):
        Target.named("openvin")
