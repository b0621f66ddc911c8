from pathlib import Path

from pumice.ops.__main__ import docs

PAGE = Path(__file__).parents[3] / "docs/ops.md"


def test_the_committed_page_is_the_generated_one():
    assert PAGE.read_text() == docs(), "run: python -m pumice.ops docs > docs/ops.md"
