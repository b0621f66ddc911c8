"""The command line: `pumice compress model.onnx --data samples/ -o small.onnx`.

Contract. Standard output carries the answer (text, or one JSON document with `--json`); progress, warnings and errors
go to standard error. Exit codes: 0 done; 1 finished, but some of it failed (a model of a batch, a check of the doctor);
2 bad input, told in one sentence; 130 interrupted. Anything else that escapes is a defect and keeps its traceback.

Every command lives in its own module, imported when it is used, so that `pumice --help` is quick.
"""

from pumice.cli.application import application


def main() -> None:
    """The entry point of the `pumice` script."""
    application.main()
