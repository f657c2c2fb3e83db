"""Pictures of slides and of Grad-CAM maps: what is drawn, not its pixels."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from cancernet.reporting import slide_plots
from cancernet.reporting.plots import BLUE, ORANGE
from cancernet.reporting.slide_plots import MAX_OPACITY, Explained, SlideMaps, plot_explained, plot_slide

NAN = np.nan
LONG = "invasive_ductal_carcinoma_of_no_special_type_grade_3"
PROBABILITIES = np.array([[0.9, 0.2, NAN], [0.7, 0.1, 0.1]])
PREDICTED = np.array([[1, 0, NAN], [1, 0, 0]])
TRUTH = np.array([[1, 1, NAN], [0, 0, 0]])


def draw(**changed):
    arguments = {
        "tissue": np.zeros((20, 30, 3), np.uint8),
        "tile_pixels": 10,
        "probabilities": PROBABILITIES,
        "predicted": PREDICTED,
        "truth": TRUTH,
        "uncertain": None,
        "threshold": 0.4,
        "positive": "IDC",
        "negative": "benign",
        "title": "Slide 7",
        "patch_micrometres": 200.0,
    }
    given = arguments | changed
    maps = SlideMaps(*(given.pop(name) for name in SlideMaps._fields))
    figure = plot_slide(maps, **given)
    figure.draw_without_rendering()
    return figure


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def drawn(axes):
    return np.ma.filled(axes.images[-1].get_array().astype(float), NAN)


def written(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_slide_with_a_truth_shows_tissue_probability_truth_and_errors():
    figure = draw()
    named = panels(figure)
    assert list(named) == ["tissue", "probability of IDC", "truth", "errors"]
    assert figure.get_suptitle() == "Slide 7"
    np.testing.assert_array_equal(drawn(named["probability of IDC"]), PROBABILITIES)
    np.testing.assert_array_equal(drawn(named["truth"]), TRUTH)
    np.testing.assert_array_equal(drawn(named["errors"]), [[0, 1, NAN], [2, 3, 3]])
    assert legend(named["truth"]) == ["benign: 3", "IDC: 2"]
    assert legend(named["errors"]) == [
        "true positive: IDC classified as IDC: 1",
        "missed: IDC classified as benign: 1",
        "false alarm: benign classified as IDC: 1",
        "true negative: benign classified as benign: 2",
    ]


def test_each_outcome_has_the_colour_of_its_legend():
    axes = panels(draw())["errors"]
    colours = axes.images[0].to_rgba(np.arange(4.0))
    swatches = [patch.get_facecolor() for patch in axes.get_legend().get_patches()]
    np.testing.assert_allclose(colours, swatches)
    assert len({tuple(colour) for colour in swatches}) == 4


def test_without_a_truth_there_are_tissue_and_map_only():
    assert list(panels(draw(truth=None))) == ["tissue", "probability of IDC"]


def test_panels_cover_the_same_places():
    named = panels(draw())
    for axes in named.values():
        assert axes.get_xlim() == (0, 3)
        assert axes.get_ylim() == (2, 0)
    assert named["tissue"].images[0].get_extent() == [0, 3, 2, 0]


def test_uncertain_patches_have_an_outline_of_their_own():
    uncertain = np.array([[0, 1, NAN], [1, 0, 0]])
    axes = panels(draw(uncertain=uncertain))["probability of IDC"]
    assert legend(axes) == ["classified as IDC: 1 patch", "uncertain: 2 patches"]
    assert to_rgba(BLUE) in [tuple(lines.get_colors()[0]) for lines in axes.collections]


def test_positive_patches_are_outlined_over_the_tissue_and_counted():
    axes = panels(draw())["probability of IDC"]
    assert axes.images[0].get_array().shape == (20, 30, 3)  # the tissue, below the probabilities
    assert legend(axes) == ["classified as IDC: 2 patches"]
    around = {tuple(sorted(map(tuple, ends.astype(int).tolist()))) for ends in axes.collections[-1].get_segments()}
    assert around == {  # the two patches of the first column: a line around both, none between them
        *(((0, 0), (1, 0)), ((0, 2), (1, 2))),
        *(((0, 0), (0, 1)), ((0, 1), (0, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 2))),
    }
    assert panels(draw(predicted=np.zeros((2, 3))))["probability of IDC"].collections[-1].get_segments() == []


def test_a_probability_of_0_shows_the_tissue_and_one_of_1_is_orange():
    image = panels(draw())["probability of IDC"].images[-1]
    nothing, certain, none = image.to_rgba(np.ma.masked_invalid([[0.0, 1.0, NAN]]))[0]
    assert nothing[3] == none[3] == 0
    np.testing.assert_allclose(certain, to_rgba(ORANGE, MAX_OPACITY), atol=0.01)


def test_colours_of_the_map_mean_the_same_on_every_slide_and_the_threshold_is_marked():
    figure = draw()
    named = panels(figure)["probability of IDC"]
    assert named.images[-1].get_clim() == (0, 1)
    (bar,) = named.child_axes
    assert [line.get_xdata()[0] for line in bar.lines if line.get_color() == "black"] == [0.4]
    assert bar.get_xlabel() == "probability; line: threshold 0.400"


@pytest.mark.parametrize(
    ("columns", "patch_micrometres", "text", "length"),
    [(3, 200.0, "100 µm", 0.5), (60, 200.0, "2 mm", 10), (60, None, "10 patches", 10), (100, 100.0, "2 mm", 20)],
)
def test_the_scale_bar_is_of_a_round_length_and_drawn_to_scale(columns, patch_micrometres, text, length):
    grid = np.full((2, columns), 0.5)
    figure = draw(probabilities=grid, predicted=grid, truth=None, patch_micrometres=patch_micrometres)
    axes = panels(figure)["tissue"]
    assert [each.get_text() for each in axes.texts] == [text]
    assert axes.lines[0].get_xdata()[1] == pytest.approx(length)


def test_names_that_look_like_formulas_are_printed_as_they_are():
    one = Explained(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), "$c$.png")
    explained = plot_explained(groups={"group $g$": [one]})
    explained.draw_without_rendering()
    shown = written(draw(title="a $x$ b", positive="$p$", negative="$n$")) + written(explained)
    assert not [text for text in shown if is_math_text(text)]
    as_read = {text.replace(r"\$", "$") for text in shown if "$" in text}
    assert as_read == {
        *("a $x$ b", "probability of $p$", "classified as $p$: 2 patches", "$n$: 3", "$p$: 2", "group $g$", "$c$.png"),
        *("true positive: $p$ classified as $p$: 1", "missed: $p$ classified as $n$: 1"),
        *("false alarm: $n$ classified as $p$: 1", "true negative: $n$ classified as $n$: 2"),
    }


@pytest.mark.parametrize("name", ["IDC", LONG])
@pytest.mark.parametrize("shape", [(200, 5), (5, 200), (1, 1)])
def test_no_text_overlaps_whatever_the_slides_shape(shape, name):
    grid = np.full(shape, 0.5)
    figure = draw(probabilities=grid, predicted=np.ones(shape), truth=np.ones(shape), positive=name)
    assert max(figure.get_size_inches()) < 20
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    named = panels(figure)
    boxes = [axes.title.get_window_extent(renderer) for axes in named.values()]
    boxes += [named[name].get_legend().get_window_extent(renderer) for name in ("truth", "errors")]
    map_of_probabilities = list(named.values())[1]
    boxes += [map_of_probabilities.get_legend().get_window_extent(renderer)]
    boxes += [axes.get_tightbbox(renderer) for axes in map_of_probabilities.child_axes]
    boxes += [named["tissue"].texts[0].get_window_extent(renderer)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_images_are_drawn_beside_their_heat():
    image, heat = np.zeros((8, 6, 3), np.uint8), np.full((8, 6, 3), 255, np.uint8)
    figure = plot_explained(groups={"Found": [Explained(image, heat, "a.png\nIDC: 0.900")] * 2, "Missed": []})
    pictures = [axes.images[0].get_array() for part in figure.subfigs for axes in part.axes if axes.images]
    assert len(pictures) == 2
    np.testing.assert_array_equal(pictures[0], np.concatenate([image, heat], axis=1))
    texts = [text.get_text() for part in figure.subfigs for axes in part.axes for text in axes.texts]
    assert texts == ["a.png\nIDC: 0.900"] * 2 + ["none"]
    assert [part.get_suptitle() for part in figure.subfigs[:2]] == ["Found", "Missed"]


def test_at_most_a_row_of_images_a_group():
    one = Explained(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), "a")
    figure = plot_explained(groups={"Found": [one] * 9}, columns=4)
    assert sum(bool(axes.images) for axes in figure.subfigs[0].axes) == 4


@pytest.mark.parametrize("name", ["IDC", LONG, LONG.upper(), "$x" * 30])
def test_captions_of_any_names_lie_apart_and_within_the_picture(name):
    image = np.zeros((8, 8, 3), np.uint8)
    one = Explained(image, image, f"10253_idx5_x1351_y1101_class0\n{name}: 0.987\n(no region supports this class)")
    groups = {
        f"Detected: {name} classified as {name}": [one] * 4,
        f"Missed: {name} classified as other": [one] * 2,
        "Correct": [],
    }
    figure = plot_explained(groups=groups)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    panels = [axes for part in figure.subfigs[:3] for axes in part.axes]
    boxes = [text.get_window_extent(renderer) for axes in panels for text in axes.texts]
    boxes += [part._suptitle.get_window_extent(renderer) for part in figure.subfigs[:3]]
    boxes += [axes.get_window_extent(renderer) for axes in panels if axes.images]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    widths = {round(axes.get_window_extent(renderer).width) for axes in panels if axes.images}
    assert min(widths) > 0.2 * figure.bbox.width  # names leave the images their room


def test_round_lengths():
    assert [slide_plots.round_length(value) for value in (0.3, 1, 1.9, 2, 4.9, 5, 9.9, 10, 3000)] == [
        1, 1, 1, 2, 2, 5, 5, 10, 2000,
    ]  # fmt: skip
