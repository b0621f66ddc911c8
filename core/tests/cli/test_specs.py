"""A strategy with its knobs in one word."""

import pytest

from pumice.cli.specs import configured
from pumice.errors import KnobError, PluginError
from pumice.strategy import Quantizer


def test_a_name_alone_has_its_defaults(quantizers):
    assert configured(Quantizer, "coarse") == quantizers.strategies("quantizer")["coarse"]()


def test_knobs_follow_the_name(quantizers):
    made = configured(Quantizer, "coarse:bits=4,per-channel=false,skip=a/*,b,calibrator=entropy")
    assert (made.bits, made.per_channel, made.skip, made.calibrator) == (4, False, ("a/*", "b"), "entropy")


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("coars", PluginError, "did you mean 'coarse'?"),
        ("coarse:bit=4", KnobError, "did you mean 'bits'?"),
        ("coarse:bits=40", KnobError, "from 2 to 8"),
        ("coarse:4", KnobError, "write name:knob=value"),
    ],
)
def test_what_does_not_fit_is_refused(quantizers, text, error, sentence):
    with pytest.raises(error) as refusal:
        configured(Quantizer, text)
    assert sentence in str(refusal.value)
