"""The template, as the stranger who copies it would meet it: built, installed by pip beside core, used, and tested."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "fashion_resnet"
RECIPE = """
[[step]]
use = "quantize"
quantizer = { name = "template-int8-weights", smallest = 100 }
"""

SPACE = """
from pumice.search import Space
from pumice.strategy import Need
from pumice.testing.models import tiny_cnn

found = Space.of(tiny_cnn(), frozenset({Need.CALIBRATION}), {}, {})
print(*sorted(taker.name for takers in found.strategies.values() for taker in takers))
"""


def test_the_template_works_where_it_is_installed(fresh, tmp_path):
    fresh.pip("pumice-template", "pumice-export-onnx", "pumice-runtime-ort")

    installed = json.loads(fresh.run("pumice", "plugins", "--json"))
    assert "template-int8-weights" in {strategy["name"] for strategy in installed["strategies"]}
    assert installed["broken"] == []

    tests = ROOT / "contrib" / "template" / "tests"
    ran = fresh.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tests, tests
    )
    assert " passed" in ran

    assert fresh.run("python", "-c", SPACE).split() == ["template-int8-weights", "template-magnitude"]

    (tmp_path / "recipe.toml").write_text(RECIPE)
    small = tmp_path / "small.onnx"
    recipe = ["--recipe", tmp_path / "recipe.toml", "-o", small]
    fresh.run("pumice", "compress", EXAMPLE / "fashion_resnet.onnx", "--data", EXAMPLE / "data", *recipe)
    assert small.stat().st_size < 0.3 * (EXAMPLE / "fashion_resnet.onnx").stat().st_size
