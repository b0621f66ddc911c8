"""Structured pruning: real channels removed, from any graph whose operators say how channels pass.

`find_groups` finds what must go together, `remove` takes it out, `prove` runs the result against the masked original.
"""

from pumice.prune.groups import ChannelGroup, Groups, Member, find_groups, union
from pumice.prune.proof import Proof, masked, prove
from pumice.prune.surgery import kept_indices, remove
from pumice.prune.wiring import Place

__all__ = [
    "ChannelGroup",
    "Groups",
    "Member",
    "Place",
    "Proof",
    "find_groups",
    "kept_indices",
    "masked",
    "prove",
    "remove",
    "union",
]
