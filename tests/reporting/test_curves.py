"""Curves as points and ticks: arithmetic that can be done by hand."""

import math
from itertools import pairwise

import pytest

from trl_plus.report.curves import HEIGHT, POINTS, WIDTH, Line, figure, panel, points_of, tick_texts, ticks


def line(points, name="train", dots=False):
    return Line(name, 0, False, dots, points)


@pytest.mark.parametrize(
    "low, high, wanted",
    [
        (0, 1, ["0.0", "0.5", "1.0"]),
        (0.12, 0.87, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-3.2, 7.9, ["-5", "0", "5", "10"]),
        (0, 5e-7, ["0", "2e-7", "4e-7", "6e-7"]),
        (0, 0.0015, ["0.0000", "0.0005", "0.0010", "0.0015"]),
        (0, 12345, ["0", "5,000", "10,000", "15,000"]),
    ],
)
def test_ticks_are_round_and_reach_over_the_data(low, high, wanted):
    values = ticks(low, high, 4)
    assert tick_texts(values) == wanted
    assert values[0] <= low
    assert values[-1] >= high - 1e-12


def test_figures():
    shown = [figure(value) for value in (0.0, 0.00149886, 1e-6, 1.25, -0.5, 12345.6, 3.2e9, math.nan)]
    assert shown == ["0", "0.001499", "1e-6", "1.25", "-0.5", "12,346", "3.2e9", "nan"]


def test_places():
    drawn = panel("Loss", "", [line([(0, 1.0), (10, 0.5), (20, 0.0)])], last=20)
    assert [text for _, text in drawn.y_ticks] == ["0.0", "0.5", "1.0"]
    assert drawn.lines[0].stretches == [f"0,0 {WIDTH / 2:g},{HEIGHT / 2:g} {WIDTH:g},{HEIGHT:g}"]
    assert drawn.lines[0].marks == []
    assert drawn.lines[0].ends == "1 → 0"
    assert drawn.x_ticks == [(0.0, "0"), (100.0, "5"), (200.0, "10"), (300.0, "15"), (400.0, "20")]


def test_a_value_that_is_not_finite_breaks_the_line_and_is_said():
    drawn = panel("Loss", "", [line([(1, 1.0), (2, 0.5), (3, math.nan), (4, 0.2)])], last=4)
    assert len(drawn.lines[0].stretches) == 1
    assert len(drawn.lines[0].marks) == 1  # the last point stands alone, so it gets a mark
    assert drawn.notes == ["train: not a finite number at step 3"]
    assert "train nan" in drawn.stripes[2].text


def test_long_logs_are_averaged_and_that_is_said():
    points = [(float(step), float(step % 2)) for step in range(4 * POINTS)]
    drawn = panel("Loss", "", [line(points)], last=points[-1][0])
    assert drawn.notes == ["train: each point is the mean of 4 logs"]
    assert drawn.lines[0].stretches[0].count(",") == POINTS
    assert {point.split(",")[1] for point in drawn.lines[0].stretches[0].split()} == {f"{HEIGHT / 2:g}"}
    assert drawn.lines[0].ends == "0 → 1"  # of the log itself


def test_one_point_and_equal_values():
    drawn = panel("Loss", "", [line([(3, 0.7)])], last=3)
    assert drawn.lines[0].ends == "0.7"
    assert len(drawn.lines[0].marks) == 1
    flat = panel("Loss", "", [line([(1, 0.0), (2, 0.0)])], last=2)
    assert flat.y_ticks[0][1] == "-1.0"
    assert flat.y_ticks[-1][1] == "1.0"


def test_stripes_cover_the_plot_without_overlap():
    lines = [line([(2, 1.0), (4, 2.0), (10, 3.0)]), line([(0, 1.0), (10, 2.0)], "held out", dots=True)]
    stripes = panel("Loss", "", lines, last=10).stripes
    assert [stripe.text for stripe in stripes] == [
        "step 0\nheld out 1", "step 2\ntrain 1", "step 4\ntrain 2", "step 10\ntrain 3\nheld out 2"
    ]  # fmt: skip
    assert stripes[0].x == 0
    for left, right in pairwise(stripes):
        assert left.x + left.width == pytest.approx(right.x)
    assert stripes[-1].x + stripes[-1].width == pytest.approx(WIDTH)


def test_points_of_a_log():
    log = [
        {"step": 1, "loss": 2},
        {"step": 2},
        {"step": 2, "loss": True},
        {"step": 1, "loss": 1.5},
        {"step": 0, "loss": 3.0},
    ]
    assert points_of(log, "loss") == [(0.0, 3.0), (1.0, 1.5)]


def test_bounds_and_levels():
    drawn = panel("Accuracy", "", [line([(0, 0.6), (1, 0.7)])], last=1, bounds=(0.0, 1.0), level=0.5)
    assert drawn.level == HEIGHT / 2
    assert panel("Margin", "", [line([(0, 5.0), (1, 7.0)])], last=1, level=0.0).level is None


@pytest.mark.parametrize(
    "value, bounds, wanted",
    [
        (0.0, (0.0, None), ["0.0", "0.5", "1.0"]),  # a share of padding is not negative
        (0.0, (None, None), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (1.0, (None, 1.0), ["0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_a_constant_gets_no_room_beyond_a_bound(value, bounds, wanted):
    drawn = panel("Padding", "", [line([(0, value), (1, value)])], last=1, bounds=bounds)
    assert [text for _, text in drawn.y_ticks] == wanted
