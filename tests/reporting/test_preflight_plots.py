"""The plots' arithmetic: where bars, ticks and the cut line stand."""

import pytest

from trl_plus.preflight.findings import Lengths
from trl_plus.preflight.plots import BINS, HEIGHT, WIDTH, difference_plot, length_plot


def lengths(edges, counts):
    return Lengths("chosen", edges, counts, {}, 0.0)


def test_bars_are_as_high_as_their_counts():
    plot = length_plot(lengths([0, 10, 20, 30, 40], [8, 4, 0, 1]), None)
    assert [bar.height for bar in plot.bars] == [HEIGHT, HEIGHT / 2, HEIGHT / 8]
    assert [bar.y + bar.height for bar in plot.bars] == [HEIGHT] * 3
    assert [bar.x for bar in plot.bars] == [0.5, WIDTH / 4 + 0.5, 3 * WIDTH / 4 + 0.5]
    assert plot.bars[0].text == "0 to 10 tokens: 8 rows"
    assert plot.bars[2].text == "30 to 40 tokens: 1 row"
    assert plot.peak == 8
    assert plot.limit is None


def test_one_row_among_many_is_seen():
    plot = length_plot(lengths([0, 10, 20], [100_000, 1]), None)
    assert plot.bars[1].height == 1


@pytest.mark.parametrize(
    "limit, x",
    [(20, WIDTH / 2), (25, WIDTH * 2.5 / 4), (40, WIDTH), (50, WIDTH), (61, None), (1024, None), (5, WIDTH / 8)],
)
def test_the_cut_line(limit, x):
    """Inside the axis, on an axis drawn on until there, or said to lie beyond it."""
    assert length_plot(lengths([0, 10, 20, 30, 40], [1, 1, 1, 1]), limit).limit == x


def test_bars_beyond_the_line_are_marked():
    plot = length_plot(lengths([0, 10, 20, 30], [1, 1, 1]), 15)
    assert [bar.kind for bar in plot.bars] == ["", "", "over"]


def test_bins_that_grow_are_drawn_equally_wide():
    plot = length_plot(lengths([1, 2, 4, 8, 16], [1, 1, 1, 1]), 6)
    assert len({bar.width for bar in plot.bars}) == 1
    assert plot.limit == WIDTH * 2.5 / 4
    assert plot.ticks == [(WIDTH * i / 4, str(2**i)) for i in range(5)]


def test_round_ticks():
    edges = list(range(0, 4096 + 1, 128))
    plot = length_plot(lengths(edges, [1] * 32), None)
    assert [text for _, text in plot.ticks] == ["0", "1,000", "2,000", "3,000", "4,000"]
    assert plot.ticks[1][0] == pytest.approx(WIDTH * 1000 / 4096, abs=0.01)


@pytest.mark.parametrize("edges, counts", [([], []), ([0, 1], [0]), ([5, 5], [3]), ([0, 1], [7]), ([7], [])])
def test_degenerate_bins(edges, counts):
    for limit in (None, 1, 100):
        plot = length_plot(lengths(edges, counts), limit)
        assert len(plot.bars) == sum(count > 0 for count in counts)


def test_differences():
    plot = difference_plot([(15, 5), (10, 5), (5, 5), (2, 5)])
    assert [bar.kind for bar in plot.bars] == ["shorter", "equal", "longer", "longer"]
    assert [bar.text for bar in plot.bars] == [
        "chosen 3 tokens shorter: 1 row",
        "equal length: 1 row",
        "chosen 5 tokens longer: 1 row",
        "chosen 10 tokens longer: 1 row",
    ]
    zero = plot.bars[1]
    assert zero.x + zero.width / 2 == pytest.approx(WIDTH / 2, abs=0.02)


def test_no_pair_is_left_out():
    """Far ones stand in the outer bars, which say so."""
    pairs = [(i, 0) for i in range(98)] + [(10_000, 0), (0, 10_000)]
    plot = difference_plot(pairs)
    rows = [int(bar.text.split(": ")[1].split()[0]) for bar in plot.bars]
    assert sum(rows) == 100
    assert "or more tokens longer" in plot.bars[-1].text
    assert "or more tokens shorter" in plot.bars[0].text
    assert plot.ticks[-1][1] == f"≥ {(BINS - 1) * 7 + 1}"


def test_all_equal_and_one_pair():
    assert [bar.kind for bar in difference_plot([(3, 3)] * 4).bars] == ["equal"]
    assert [bar.kind for bar in difference_plot([(9, 3)]).bars] == ["longer"]
