"""The search for the best recipe from whatever is installed, by measuring.

`search` tries recipes and gives a verdict; `Space` says what could be tried, a `Searcher` plugin what to try next.
"""

from pumice.search.application import Found, search
from pumice.search.space import LeftOut, Proposal, Space
from pumice.search.trial import Figures, Trial, front
from pumice.search.verdict import Verdict, Verified

__all__ = ["Figures", "Found", "LeftOut", "Proposal", "Space", "Trial", "Verdict", "Verified", "front", "search"]
