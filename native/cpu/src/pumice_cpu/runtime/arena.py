"""Where values lie in the arena: one piece of memory for all that a run computes.

A root is alive from the first instruction that writes it to the last that touches it. Largest first, each takes the
lowest place that no root alive at the same time has. An elementwise result takes over the memory of an operand that
dies with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pumice_cpu.runtime.compiler import Instruction
from pumice_cpu.runtime.views import Root

ALIGNMENT = 64


@attrs.define(eq=False)
class _Life:
    """A piece of memory: the roots that hand it on, and when."""

    roots: list[Root]
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        return max(root.nbytes for root in self.roots)


def plan(instructions: Sequence[Instruction]) -> tuple[dict[Root, int], int]:
    """The first byte of every root of the arena, and the bytes of all of it."""
    lives = _lives(instructions)
    _hand_on(instructions, lives)
    offsets: dict[Root, int] = {}
    placed: list[tuple[int, _Life]] = []
    unique = {id(life): life for life in lives.values()}
    for life in sorted(unique.values(), key=lambda life: (-life.nbytes, life.first)):
        at = _lowest(life, placed)
        placed.append((at, life))
        offsets.update(dict.fromkeys(life.roots, at))
    return offsets, max((at + _rounded(life.nbytes) for at, life in placed), default=0)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _lives(instructions: Sequence[Instruction]) -> dict[Root, _Life]:
    lives: dict[Root, _Life] = {}
    for i, instruction in enumerate(instructions):
        for view in instruction.operands:
            if view is not None and view.root.home == "arena":
                lives.setdefault(view.root, _Life([view.root], i, i)).last = i
    return lives


def _hand_on(instructions: Sequence[Instruction], lives: dict[Root, _Life]) -> None:
    for i, instruction in enumerate(instructions):
        target = instruction.operands[0] if instruction.in_place else None
        if target is None or target.root not in lives or lives[target.root].first != i:
            continue
        for position in instruction.in_place:
            operand = instruction.operands[position]
            life = None if operand is None else lives.get(operand.root)
            if life is None or life.last != i or target.root.nbytes != operand.root.nbytes:  # type: ignore[union-attr]
                continue
            own = lives[target.root]
            life.roots.append(target.root)
            life.last = own.last
            lives[target.root] = life
            break


def _lowest(life: _Life, placed: Sequence[tuple[int, _Life]]) -> int:
    """The lowest offset that is free while the root lives."""
    taken = sorted(
        (at, at + _rounded(other.nbytes))
        for at, other in placed
        if life.first <= other.last and other.first <= life.last
    )
    at = 0
    for begin, end in taken:
        if at + _rounded(life.nbytes) <= begin:
            break
        at = max(at, end)
    return at
