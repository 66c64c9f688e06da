"""The figures of tools/house.py stay within their limits; `uv run python tools/house.py --all` lists them."""

import pytest

from tools import house

FIGURES = house.figures()
# what is above its limit in tools/house.py today: lower a figure here when it has fallen, never raise one
ABOVE = {
    "lines of asrlora": 19_200,
    "lines of the longest file": 610,
    "lines of the longest function": 94,
    "methods of the largest class": 36,
    "fmt: skip in asrlora": 86,
    "public names without a docstring": 127,
}


@pytest.mark.parametrize("name", house.LIMITS)
def test_figures_are_within_their_limits(name: str) -> None:
    value, where = FIGURES[name]
    assert value <= ABOVE.get(name, house.LIMITS[name]), where


def test_the_way_of_an_utterance_can_be_walked() -> None:
    """Files and functions that docs/architecture.md names exist."""
    for name, functions in house.way():
        defined = {dotted for dotted, _ in house.definitions((house.ROOT / name).read_text())}
        assert set(functions) <= defined, name
