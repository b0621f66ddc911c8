"""`plugins`, `recipe` and `doctor`: what is installed, as text and as JSON."""

import json
import tomllib

import pytest

from pumice.doctor import cpu_features, cpu_model, examine
from pumice.recipe import Recipe
from pumice.registry import STRATEGY_HOOKS
from pumice.strategy import Runtime


def test_plugins_lists_every_strategy_with_its_knobs_and_origin(quantizers, run):
    found = json.loads(run("plugins", "--json").stdout)
    coarse = next(s for s in found["strategies"] if s["name"] == "coarse")
    assert coarse["from"] == "dist-two 9.9"
    assert coarse["summary"] == "Rounds hard."
    assert coarse["knobs"][0] == {
        "name": "calibrator",
        "domain": "minmax | entropy",
        "default": "minmax",
        "default_text": "minmax",
        "help": "how ranges are chosen",
    }
    expected = {s for base in STRATEGY_HOOKS.values() for s in quantizers.strategies(base.kind).values()}
    assert len([s for s in found["strategies"] if s["kind"] != "step"]) == len(expected)


def test_plugins_shows_clashes_and_broken_ones(install, plugin, quantizers, run):
    install(
        one=plugin(pumice_quantizers=list(quantizers.strategies("quantizer").values())),
        two=plugin(pumice_quantizers=list(quantizers.strategies("quantizer").values())),
        bad=plugin(pumice_losses=OSError("no library")),
    )
    text = " ".join(run("plugins").stdout.split())
    assert "quantizer 'coarse' is provided by both 'dist-one' and 'dist-two'" in text
    assert "dist-bad 9.9: pumice_losses failed with OSError: no library" in text


def test_plugins_can_be_narrowed_to_a_kind(quantizers, run):
    found = json.loads(run("plugins", "--kind", "quantizer", "--json").stdout)
    assert [s["name"] for s in found["strategies"]] == ["coarse", "fine"]


def test_an_unknown_kind_is_refused_with_the_nearest(run):
    done = run("plugins", "--kind", "quantiser")
    assert done.exit_code == 2
    assert "did you mean 'quantizer'?" in done.stderr


def test_the_markdown_table_has_a_row_for_every_strategy(quantizers, run):
    lines = run("plugins", "--kind", "quantizer", "--markdown").stdout.splitlines()
    assert lines[2] == "| quantizer | `coarse` | Rounds hard. | calibrator, bits, per_channel, skip | `dist-two` |"
    assert len(lines) == 4


def test_the_example_recipe_reads_back_as_the_defaults(quantizers, run):
    text = run("recipe", "--example").stdout
    recipe = Recipe.from_toml(text)
    (step,) = recipe.steps
    assert step.quantizer == quantizers.strategies("quantizer")["coarse"]()
    assert '# name = "fine"' in text
    assert "calibrator" in tomllib.loads(text)["step"][0]["quantizer"]


def test_a_checked_recipe_is_shown_with_its_defaults(quantizers, run, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[[step]]\nuse = "quantize"\nquantizer = "fine"\n')
    shown = run("recipe", "--check", file).stdout
    assert Recipe.from_toml(shown) == Recipe.read(file)
    assert "strength = 0.5" in shown


def test_a_wrong_recipe_is_refused(quantizers, run, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[[step]]\nuse = "quantize"\nquantizer = { name = "coarse", bitts = 4 }\n')
    done = run("recipe", "--check", file)
    assert done.exit_code == 2
    assert "did you mean 'bits'?" in done.stderr


def test_recipe_asks_what_to_do(run):
    assert run("recipe").exit_code == 2
    assert run("recipe", "--example", "--check", "x").exit_code == 2


def test_the_doctor_tells_versions_machine_plugins_and_runtimes(quantizers, run):
    found = json.loads(run("doctor", "--json").stdout)
    assert {"python", "pumice", "numpy", "onnx"} <= set(found["versions"])
    assert found["plugins"]["two"] == "dist-two 9.9"
    assert found["runtimes"]["reference"] == "available"
    assert found["machine"]["cpus_usable"] >= 1


def test_the_doctor_shows_what_is_broken_with_its_traceback_and_remedy(install, plugin, run):
    install(bad=plugin(pumice_losses=OSError("no library")))
    done = run("doctor")
    assert done.exit_code == 1
    assert "Traceback" in done.stdout
    assert "OSError: no library" in done.stdout
    assert "to mend it: pip uninstall dist-bad, or PUMICE_DISABLE_PLUGINS=bad" in done.stdout


def test_the_doctor_survives_a_runtime_whose_check_fails(install, plugin):
    import attrs

    @attrs.frozen(kw_only=True)
    class Fragile(Runtime):
        name = "fragile"

        def available(self):
            raise ValueError("libfragile.so.3 is missing")

    found = examine(install(fragile=plugin(pumice_runtimes=[Fragile])))
    assert "libfragile.so.3 is missing" in found.runtimes["fragile"]
    assert any("fragile" in finding.what for finding in found.findings)


def test_the_doctor_advises_when_nothing_can_be_compressed(install):
    assert any("No quantizer is installed" in sentence for sentence in examine(install()).advice)


def test_the_doctor_names_a_plugin_that_is_heavy_to_import(install):
    import attrs

    found = install()
    heavy = attrs.evolve(found.imports[0], heavy=("torch",), seconds=2.0)
    assert any(
        "loads torch when it is imported (2.0 s" in s for s in examine(attrs.evolve(found, imports=(heavy,))).advice
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n", (("avx2", "avx512_vnni"), "Some CPU")),
        ("Features\t: fp asimd asimddp i8mm\n", (("asimd", "asimddp", "i8mm"), None)),
    ],
)
def test_cpu_features_are_read_as_the_kernel_tells_them(tmp_path, text, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert cpu_features(file) == expected[0]
    assert expected[1] is None or cpu_model(file) == expected[1]


def test_cpu_features_are_unknown_where_the_kernel_tells_nothing(tmp_path):
    assert cpu_features(tmp_path / "absent") == ()
