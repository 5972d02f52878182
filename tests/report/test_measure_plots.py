"""Plots of measures: drawn values are read from the objects of matplotlib, and any data can be drawn."""

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mllm.report.measure_plots import plot_agreement, plot_distributions

NAN = float("nan")
TRUE = {"EF": np.array([30.0, 50.0, 60.0, NAN]), "EDV": np.array([100.0, 150.0, 120.0, 90.0]), "ESV": np.full(4, NAN)}
PREDICTED = {"EF": np.array([32.0, 47.0, 61.0, 50.0]), "EDV": np.array([110.0, 150.0, NAN, 95.0])}


@pytest.fixture
def drawn(monkeypatch):
    """The saved figures of matplotlib."""
    figures = []

    class Recorded(Figure):
        def savefig(self, *arguments, **options):
            figures.append(self)
            return super().savefig(*arguments, **options)

    monkeypatch.setattr(matplotlib.figure, "Figure", Recorded)
    return figures


def points(axes):
    (line,) = (line for line in axes.lines if line.get_marker() == "o")
    return np.column_stack(line.get_data()).tolist()


def test_agreement_shows_every_pair_and_the_limits(tmp_path, drawn):
    plot_agreement(PREDICTED, TRUE, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert Image.open(tmp_path / "a.png").size == (2 * 504, 912)
    scatter, scatter_edv, bland, bland_edv = drawn[0].axes
    assert points(scatter) == [[30, 32], [50, 47], [60, 61]]
    assert points(scatter_edv) == [[100, 110], [150, 150], [90, 95]]
    assert points(bland) == [[31, 2], [48.5, -3], [60.5, 1]]
    assert "mean absolute error 2.0 points, n = 3" in scatter.get_title()
    identity = next(line for line in scatter.lines if line.get_label() == "identity")
    assert np.array_equal(*identity.get_data())
    errors = np.array([10.0, 0.0, 5.0])
    levels = sorted(line.get_ydata()[0] for line in bland_edv.lines if line.get_color() == "C3")
    reach = 1.96 * errors.std(ddof=1)
    assert levels == pytest.approx([5 - reach, 5, 5 + reach])
    assert bland_edv.get_ylabel() == "predicted - true (mL)"


def test_distributions_are_fractions_of_each_split(tmp_path, drawn):
    rng = np.random.default_rng(0)
    splits = {
        "train": {"EF": rng.normal(55, 10, 200), "EDV": rng.normal(120, 20, 200)},
        "test": {"EF": np.append(rng.normal(40, 10, 50), NAN)},
    }
    plot_distributions(splits, tmp_path / "d.png")
    ef, edv = drawn[0].axes
    assert ef.get_xlabel() == "EF (%)"
    assert [text.get_text() for text in ef.get_legend().get_texts()] == ["train (200)", "test (50)"]
    assert [text.get_text() for text in edv.get_legend().get_texts()] == ["train (200)"]
    outlines = [patch.get_xy() for patch in ef.patches]
    assert len(outlines) == 4
    for outline in outlines:
        # The area under the steps: heights times widths of the bins is 100 % times the width of a bin.
        x, y = outline.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        assert area == pytest.approx(100 * np.diff(np.unique(x))[0], rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_number_of_samples_can_be_drawn(tmp_path, count):
    true = {"EF": np.full(count, 50.0), "other": np.full(count, NAN)}
    plot_agreement(true, true, tmp_path / "a.png")
    plot_agreement({}, true, tmp_path / "a.png")
    plot_distributions({"train": true, "test": {}}, tmp_path / "d.png")
    plot_distributions({}, tmp_path / "d.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "d.png"]
