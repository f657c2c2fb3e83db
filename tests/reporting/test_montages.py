"""Pictures made of many images: what is drawn, not its pixels."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cancernet.reporting import montages
from cancernet.reporting.schema import ConfidentError


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def error(file, kind, probability):
    label, predicted = ("IDC", "benign") if kind == montages.MISSED else ("benign", "IDC")
    return ConfidentError(file, kind, label, predicted, probability)


def test_errors_of_each_kind_keep_their_colours_and_carry_file_and_probability_of_the_positive_class():
    red = np.zeros((50, 42, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((300, 400, 1), 77, np.uint8)
    edge = np.full((50, 1), 33, np.uint8)
    errors = [
        error("testing/0/10253_idx5_x1_y1_class1.png", montages.MISSED, 0.01235),
        error("b.png", montages.FALSE_ALARM, 0.9),
        error("cost_$5_$6.png", montages.FALSE_ALARM, 0.8),
    ]
    figure = montages.plot_errors(images=[red, grey, edge], errors=errors, classes=("IDC", "benign"))
    missed, alarms = figure.axes
    side = montages.TILE_PIXELS
    (first, second) = (np.asarray(axes.images[0].get_array()) for axes in (missed, alarms))
    assert first[side // 2, side // 2].tolist() == [255, 0, 0]
    assert first[side // 2, side + side // 2].tolist() == [255, 255, 255]
    assert second[side // 2, side // 2].tolist() == [77, 77, 77]
    assert second[side // 2, side + side // 2].tolist() == [33, 33, 33]
    assert second[side + 2 :].min() == 255  # the caption's strip
    assert missed.texts[0].get_text() == "10253_idx5_x1_y1_\nclass1.png\nprobability 0.012"
    assert r"cost_\$5_\$6.png" in alarms.texts[1].get_text()
    assert [text.get_text() for text in figure.texts] == [
        "Missed: IDC classified as benign; lowest probability of IDC first",
        "False alarms: benign classified as IDC; highest probability of IDC first",
    ]


def test_a_kind_of_which_there_is_no_error_says_so():
    image = np.zeros((5, 5, 3), np.uint8)
    figure = montages.plot_errors(
        images=[image], errors=[error("a.png", montages.MISSED, 0.1)], classes=("IDC", "benign")
    )
    assert figure.texts[1].get_text() == "False alarms: benign classified as IDC: none"
    assert len(figure.axes) == 1


def test_errors_of_several_classes_carry_the_true_and_the_predicted_class():
    image = np.zeros((5, 5, 3), np.uint8)
    wrong = ConfidentError("a.png", montages.WRONG, "benign", "malignant", 0.7)
    figure = montages.plot_errors(images=[image] * 12, errors=[wrong] * 12, classes=None)
    (axes,) = figure.axes
    assert axes.texts[0].get_text() == "a.png\ntrue: benign\npredicted:\nmalignant\nprobability 0.700"
    assert axes.texts[6].get_position()[1] > montages.TILE_PIXELS  # in the second row
    assert "probability of the predicted class" in words(figure)


def test_captions_of_long_names_lie_within_the_picture():
    name = "a_" * 60 + "long_name.png"
    image = np.zeros((5, 5, 3), np.uint8)
    errors = [error(name, montages.MISSED, 0.1)] * 6 + [error(name, montages.FALSE_ALARM, 0.9)] * 6
    figure = montages.plot_errors(images=[image] * 12, errors=errors, classes=("x" * 60, "y" * 60))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


def test_that_there_are_no_errors_is_written_and_a_wrong_number_of_images_refused():
    assert "Every image was classified correctly." in words(montages.plot_errors(images=[], errors=[], classes=None))
    with pytest.raises(ValueError, match="shorter"):
        montages.plot_errors(images=[], errors=[error("a.png", montages.MISSED, 0.1)], classes=None)


def test_no_text_is_smaller_than_nine_points():
    image = np.zeros((5, 5, 3), np.uint8)
    figures = [
        montages.plot_errors(images=[image], errors=[error("a.png", montages.MISSED, 0.1)], classes=("IDC", "benign")),
        montages.plot_dataset(
            counts={"training": {"a": 1}}, patients={"training": [1]}, sizes=[(5, 5)], samples={"a": [image]}
        ),
    ]
    for figure in figures:
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


@pytest.mark.parametrize("n_classes", [2, 10])
def test_dataset_shows_counts_sizes_and_samples_of_every_class(n_classes):
    classes = [f"class{i}" for i in range(n_classes)]
    counts = {"training": {name: 10 * (i + 1) for i, name in enumerate(classes)}, "testing": {"class0": 3}}
    samples = {name: [np.full((50, 50, 3), 20 * i, np.uint8)] * (8 if i else 3) for i, name in enumerate(classes)}
    sizes = np.array([[50, 50]] * 8 + [[50, 42], [7, 50]])
    bars, histogram, grid = montages.plot_dataset(counts=counts, patients={}, sizes=sizes, samples=samples).axes
    training, testing = bars.containers
    assert [bar.get_width() for bar in training] == [10 * (i + 1) for i in range(n_classes)]
    assert [bar.get_width() for bar in testing] == [3] + [0] * (n_classes - 1)
    assert histogram.get_title() == "Image sizes: 80.0% are 50 x 50"
    assert sum(bar.get_height() for bar in histogram.patches[:24]) == 10
    montage, side = np.asarray(grid.images[0].get_array()), montages.TILE_PIXELS
    assert montage.shape == (n_classes * side, 8 * side, 3)
    assert montage[side // 2, 2 * side + side // 2].tolist() == [0, 0, 0]
    assert montage[side // 2, 3 * side + side // 2].tolist() == [255, 255, 255]
    assert montage[-side // 2, -side // 2].tolist() == [20 * (n_classes - 1)] * 3


def test_dataset_shows_patients_per_split_and_images_per_patient():
    samples = {"a": [np.zeros((5, 5, 3), np.uint8)]}
    patients = {"training": [2, 9, 4], "validation": [], "testing": [7, 1]}
    axes = montages.plot_dataset(
        counts={"training": {"a": 23}}, patients=patients, sizes=[(5, 5)], samples=samples
    ).axes
    numbers, images = axes[2:4]
    assert [bar.get_width() for bar in numbers.patches] == [3, 2]
    assert [label.get_text() for label in numbers.get_yticklabels()] == ["training", "testing"]
    assert [bar.get_height() for bar in images.patches] == [9, 4, 2, 7, 1]
    assert [bar.get_x() + 0.5 for bar in images.patches] == [0, 1, 2, 3, 4]
    assert images.patches[2].get_facecolor() != images.patches[3].get_facecolor()
    assert images.get_title() == "Images per patient: 1 to 9"


def test_dataset_shows_the_classes_in_the_order_of_every_table_whatever_that_of_the_samples():
    samples = {name: [np.zeros((5, 5, 3), np.uint8)] for name in ("b", "c", "a")}
    bars, _, grid = montages.plot_dataset(counts={"training": {}}, patients={}, sizes=[(5, 5)], samples=samples).axes
    for axes in (bars, grid):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
