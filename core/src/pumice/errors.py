"""Errors a user can act on. Each is one sentence: what is wrong, where, and what to do about it.

The command line prints the sentence and exits with code 2; a Python caller catches `PumiceError`.
Anything else that escapes is a defect of pumice and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class PumiceError(Exception):
    """Base of every refusal: its text is one clear sentence naming what, where and the remedy."""

    exit_code = 2


class ModelError(PumiceError):
    """The model file or graph cannot be used."""


class UnsupportedOp(ModelError):
    """An operator, or one of its modes, that pumice does not implement; names the operator and the node."""


class DataError(PumiceError):
    """The data cannot be used: missing, empty, wrong shape or type, NaN, labels that do not match."""


class KnobError(PumiceError):
    """A knob that does not exist, or a value outside its domain."""


class RecipeError(PumiceError):
    """A recipe that cannot be read or that makes no sense."""


class PluginError(PumiceError):
    """A plugin that is missing, broken, or clashes with another."""


class NothingChanged(PumiceError):
    """A step that ran to its end and changed nothing. Success without effect is a failure."""


class BudgetExceeded(PumiceError):
    """A step that would cost more accuracy than it may: it is rolled back, the model is as it was before it."""


class OutOfTime(PumiceError):
    """A computation that was over the time it was given."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, else a list of what is known (at most twelve)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}" if known else ""
