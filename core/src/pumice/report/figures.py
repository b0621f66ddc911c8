"""How numbers are written for people: three significant digits, decimal prefixes, percent."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes: `1.24 MB`."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def time_text(seconds: float) -> str:
    """`0.8 s`, `42.0 s`, `3 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def percent(share: float) -> str:
    """`91.25%`; an exact whole has no decimals."""
    return f"{100 * share:.2f}%" if share not in {0.0, 1.0} else f"{share:.0%}"
