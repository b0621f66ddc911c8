"""`pumice distil`: a teacher in, a trained student out, with its account. The flags are the knobs of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pumice.cli.console import output_options
from pumice.cli.train import carry_out, step_from, training_options
from pumice.steps import Distil


@click.command("distil")
@click.argument("teacher", type=click.Path(path_type=Path))
@training_options(Distil, apart_from=("teacher",))
@output_options
def command(teacher: Path, **options: Any) -> None:
    """Train a smaller network, the student, to do what a larger one, the teacher, does.

    \b
    pumice distil resnet.onnx --width 0.5 --data samples/ -o small.onnx
    pumice distil bert.onnx --layers 0.5 --losses feature-mse --losses attention-maps --data texts/ -o small.onnx
    pumice distil resnet.onnx --student mobilenet.toml --losses soft-targets:temperature=3 --data samples/ -o small.onnx

    The student is a file, a network described in TOML, or the teacher made narrower or shorter. Labels are used where
    the data has them, and not needed.
    """
    step = step_from(Distil, options)
    carry_out(step, teacher, sources={"the student": Path(step.student) if step.student else None}, **options)
