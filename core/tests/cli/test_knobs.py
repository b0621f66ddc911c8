"""Flags come from knobs, and only from there."""

import attrs
import click
import pytest
from click.testing import CliRunner

from pumice.cli.knobs import KnobCommand, recipe_from
from pumice.steps import Quantize


@pytest.fixture
def recipe_of(quantizers):
    """The recipe that these flags describe."""

    def recipe_of(*flags, recipe=None):
        found = []

        @click.command(cls=KnobCommand)
        @click.pass_context
        def command(ctx):
            found.append(recipe_from(ctx, recipe))

        CliRunner().invoke(command, flags, catch_exceptions=False, standalone_mode=False)
        return found[0] if found else None

    return recipe_of


def step_of(recipe):
    (step,) = recipe.steps
    return step


def test_without_flags_the_recipe_is_the_default(recipe_of):
    assert step_of(recipe_of()) == Quantize()


def test_a_flag_of_the_step_sets_its_knob(recipe_of):
    step = step_of(recipe_of("--max-drop", "0.005", "--samples", "64", "--target", "openvino"))
    assert (step.max_drop, step.samples, step.target) == (0.005, 64, "openvino")


def test_a_flag_of_a_quantizer_chooses_the_default_one(recipe_of):
    step = step_of(recipe_of("--calibrator", "entropy"))
    assert (step.quantizer.name, step.quantizer.calibrator) == ("coarse", "entropy")


def test_every_form_of_knob_is_parsed(recipe_of):
    flags = ("--quantizer", "coarse", "--bits", "4", "--per-channel", "false", "--skip", "a/*,b", "--skip", "c")
    quantizer = step_of(recipe_of(*flags)).quantizer
    assert attrs.asdict(quantizer) == {
        "calibrator": "minmax",
        "bits": 4,
        "per_channel": False,
        "skip": ("a/*", "b", "c"),
    }


def test_a_knob_that_bears_the_name_of_an_option_gets_the_quantizer_in_front(recipe_of):
    step = step_of(recipe_of("--quantizer", "fine", "--fine-samples", "7", "--samples", "9"))
    assert (step.samples, step.quantizer.samples) == (9, 7)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--calibrator", "entropi"), "must be one of 'minmax', 'entropy'; did you mean 'entropy'?"),
        (("--bits", "9"), "knob 'bits' = 9 must be a whole number from 2 to 8"),
        (("--bits", "many"), "must be a whole number from 2 to 8"),
        (("--max-drop", "2"), "must be a number from 0 to 1"),
        (("--target", "ort"), "knob 'target'"),
        (("--quantizer", "coars"), "no quantizer 'coars' is installed; did you mean 'coarse'?"),
        (("--quantizer", "coarse", "--strength", "1"), "quantizer 'coarse' has no knob 'strength'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(recipe_of, flags, sentence):
    from pumice.errors import PumiceError

    with pytest.raises(PumiceError) as refusal:
        recipe_of(*flags)
    assert sentence in str(refusal.value)


def test_flags_and_a_recipe_are_refused_together(recipe_of, tmp_path):
    from pumice.errors import KnobError

    file = tmp_path / "r.toml"
    file.write_text('[[step]]\nuse = "quantize"\n')
    with pytest.raises(KnobError, match="--recipe says everything itself: write --max-drop into"):
        recipe_of("--max-drop", "0.5", recipe=file)


def test_help_shows_domain_and_default_once_per_declaration(quantizers, run):
    text = " ".join(run("compress", "--help").stdout.split())
    assert "accuracy that may be lost, as a fraction (0.01 is one point) [0 .. 1; default 0.01]" in text
    assert "coarse: how ranges are chosen [minmax | entropy; default minmax]" in text
    assert "fine: how ranges are chosen [mse | minmax; default mse]" in text


def test_without_a_quantizer_the_flags_of_the_step_remain(install, run):
    install()
    text = run("compress", "--help").stdout
    assert "--max-drop" in text
    assert "Of the quantizers" not in text
