"""Prints pieces.h, the tables that levels with 32 floats in reach of one permutation (AVX-512) look functions up in.

    python pieces.py > pieces.h

Every function is cut into 32 pieces; each has a polynomial in the distance from its middle, which meets the function at
the Chebyshev nodes of the piece. Coefficients lie by degree, so that one permutation reads one for each lane.

    normal_tail   Q(u) = 1 - Phi(u), pieces of 1/4 from 0 to 8; zero on the last
    tanh          four pieces an octave from 1/16 to 16, the first of which reaches down to 0 and is odd
"""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import ndtr

Table = np.ndarray
"""float32, one row a degree, one column a piece."""
PIECES, LEAST = 32, 1 / 16
TAIL_DEGREE, TANH_DEGREE = 7, 5


def fitted(function: Callable[[np.ndarray], np.ndarray], degree: int, low: float, high: float) -> np.ndarray:
    """Coefficients in the distance from the middle of [low, high]."""
    middle, half = (low + high) / 2, (high - low) / 2
    near = Chebyshev.interpolate(lambda t: function(middle + t), degree, domain=[-half, half])
    return near.convert(kind=Polynomial).coef


def odd_near_zero(function: Callable[[np.ndarray], np.ndarray], degree: int, end: float) -> np.ndarray:
    """Coefficients of x times a polynomial in x^2."""
    ratio = fitted(lambda square: function(np.sqrt(square)) / np.sqrt(square), degree // 2, 0, end * end)
    found = np.zeros(degree + 1)
    found[1::2] = Polynomial(ratio)(Polynomial([-end * end / 2, 1])).coef
    return found


def normal_tail() -> Table:
    columns = [fitted(lambda u: ndtr(-u), TAIL_DEGREE, i / 4, (i + 1) / 4) for i in range(PIECES - 1)]
    return np.float32([*columns, np.zeros(TAIL_DEGREE + 1)]).T


def tanh() -> tuple[Table, Table]:
    """The middles of the pieces, and the coefficients."""
    ends = [LEAST * 2 ** (i // 4) * (1 + i % 4 / 4) for i in range(PIECES + 1)]
    columns = [fitted(np.tanh, TANH_DEGREE, low, high) for low, high in pairwise(ends[1:])]
    middles = [0.0, *((low + high) / 2 for low, high in pairwise(ends[1:]))]
    return np.float32([middles]), np.float32([odd_near_zero(np.tanh, TANH_DEGREE, ends[1]), *columns]).T


def written(name: str, rows: Sequence[np.ndarray]) -> str:
    lines = [f"static const float {name}[{len(rows)}][{PIECES}] __attribute__((aligned(64))) = {{"]
    for row in rows:
        numbers = [f"{float(x):.8e}f" for x in row]
        fours = [", ".join(numbers[i : i + 4]) for i in range(0, PIECES, 4)]
        lines.append("    {" + ",\n     ".join(fours) + "},")
    return "\n".join([*lines, "};"])


def main() -> None:
    middles, coefficients = tanh()
    tables = {"normal_tail": normal_tail(), "tanh_middle": middles, "tanh_pieces": coefficients}
    guard = "#ifndef PUMICE_ROWS_PIECES_H\n#define PUMICE_ROWS_PIECES_H"
    parts = ["/* Printed by pieces.py, which says what these are. */", guard]
    sys.stdout.write("\n\n".join([*parts, *(written(*item) for item in tables.items()), "#endif\n"]))


if __name__ == "__main__":
    main()
