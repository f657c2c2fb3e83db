"""A run in the browser: probabilities, decisions, Grad-CAM and slide maps of the images that a visitor sends.

Start it with `streamlit run app.py -- --run runs/cancernet`, or without an argument for the newest run under runs/.
"""

import importlib
import json
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st

from cancernet import InputError
from cancernet.command_line import Parser, quiet_import

if "keras" not in sys.modules:  # this file is run again at every click
    with quiet_import():
        importlib.import_module("keras")

import keras

from cancernet.config import RUNS
from cancernet.judging.decision import Decision, expected_rates
from cancernet.learning import explain
from cancernet.reporting.content import Report
from cancernet.run import MODEL, Run, find_runs, load_run, name_class, read_report
from cancernet.using import page, prediction, results, slide_map, uploads
from cancernet.using.prediction import DecidedPatches, ScoredPatches
from cancernet.using.shelf import Shelf

PURPOSE = "For research and teaching, not for diagnosis."
KEPT = "Images stay in this computer's memory until the page is closed; nothing is written to disk."
WELCOME = (
    "Send images of H&E-stained breast tissue, or try the sample. Each patch comes back with its probabilities, the "
    "decision and Grad-CAM, a slide also with a map. The run's own figures are in the bar on the left (» opens it)."
)
CARDS_A_PAGE, CARDS_A_ROW = 6, 3
MOST_KEPT_BYTES = 2**30  # of the images of all visitors together; those of one have at most 450 MB
OPERATING_POINTS = {"balanced": "where sensitivity and specificity together should be highest"}
SCALES = {"0.25 (a scan at 40x)": 0.25, "0.5 (20x)": 0.5, "1 (10x)": 1.0, "2 (5x)": 2.0, "4 (IDC patches)": 4.0}


def main() -> None:
    st.set_page_config(page_title="CancerNet", layout="wide")
    st.html(STYLE)
    st.title("CancerNet")
    st.caption(f"**{PURPOSE}** {KEPT}")
    try:
        folder = choose_run(sys.argv[1:])
        model = folder / MODEL
        run, lock = open_run(str(folder), model.stat().st_mtime_ns if model.is_file() else 0)
        with st.sidebar:
            show_card(run)
        files, key = ask_for_images()
        if files is None:
            st.info(WELCOME, icon=":material/info:")
            return
        scored = score_once(run, lock, files, (str(folder), *key))
        if scored:
            show_results(run, lock, scored)
    except InputError as error:
        st.error(plain(str(error)))


def choose_run(argv: Sequence[str]) -> Path:
    parser = Parser(prog="streamlit run app.py --", description=__doc__)
    parser.add_argument("--run", type=Path, help=f"folder made by train_model.py (the newest under {RUNS})")
    given = parser.parse_args(argv).run
    folders = find_runs(given.resolve().parent if given else RUNS)
    if given:
        folders = [given, *(folder for folder in folders if folder.resolve() != given.resolve())]
    if not folders:
        raise InputError(
            f"There is no finished run under {RUNS}. Train one with train_model.py, or give -- --run FOLDER."
        )
    return st.sidebar.selectbox("Run", folders, format_func=lambda folder: folder.resolve().name, key="run")


@st.cache_resource(max_entries=2, show_spinner="Loading the network ...")
def open_run(folder: str, changed: int) -> tuple[Run, threading.Lock]:
    """Load a run for all visitors, with the lock under which it answers.

    Args:
        changed: when the model was written. A run that was trained again is loaded again.
    """
    # Streamlit calls this after every click. It would throw away what TensorFlow has compiled for the network, which
    # takes half a second to make again, and another visitor's patches may be in it.
    keras.backend.clear_session = lambda: None
    run = load_run(Path(folder))
    size, _, channels = run.model.input_shape[1:]
    for count in (1, 2, 3):  # the first answers take seconds, and no visitor should wait for them
        prediction.score_images(run, np.zeros((count, size, size, channels), np.uint8))
    explain.grad_cam(run.model, np.zeros((1, size, size, channels), np.uint8), 0)
    return run, threading.Lock()


@st.cache_resource
def open_shelf() -> Shelf[page.Answer]:
    """What is kept of all visitors; whose answer was given up is answered again at the next click."""
    return Shelf(MOST_KEPT_BYTES)


def show_card(run: Run) -> None:
    st.warning(PURPOSE, icon=":material/school:")
    report = read_report(run.folder, Report)
    if not report:
        st.info("This run has no report.json, so nothing is known of how good it is.")
        return
    card = page.describe_run(run, report)
    st.markdown(f"**How good it is.** {plain(card.statement)}")
    rows = [f"| | | {plain(card.interval)} |", "|:--|--:|:--|"]
    st.markdown("\n".join([*rows, *("| " + " | ".join(map(plain, cells)) + " |" for cells in card.figures)]))
    st.caption(f"Intervals are over {card.over}.")
    counts = "".join(f"\n- {plain(count)}" for count in card.classes)
    st.markdown(f"**What it was trained on.** {card.images}:{counts}")
    st.caption(plain(card.network))
    for warning in card.warnings:
        st.warning(plain(warning))


def ask_for_images() -> tuple[list | None, tuple]:
    """Name and bytes of each file that was sent, or of the sample, None for none; and a key that changes with them."""
    state, limits = st.session_state, uploads.Limits()
    given, or_else = st.columns([3, 1], vertical_alignment="bottom")
    files = given.file_uploader(
        "Patches, a zip of a patient's patches, or a large image",
        type=[ending[1:] for ending in (*uploads.ENDINGS, ".zip")],
        accept_multiple_files=True,
        key="files",
        on_change=lambda: state.update(sample=False),
        help=f"Up to {limits.files:,} images and {limits.bytes // 2**20} MB at a time, unpacked. Names such as "
        "10253_idx5_x1351_y1101_class0.png place patches on their slide.",
    )
    or_else.button(
        "Try a sample slide",
        icon=":material/colorize:",
        width="stretch",
        on_click=lambda: state.update(sample=True),
        help="Made-up breast tissue of no real patient.",
    )
    if state.get("sample"):
        st.caption(
            "**Sample:** made-up tissue of no real patient. It shows what the page does, not how good the run is."
        )
        return uploads.sample_uploads(), ("sample",)
    if files:
        return [(file.name, file.getvalue()) for file in files], tuple(file.file_id for file in files)
    return None, ()


def score_once(run: Run, lock: threading.Lock, files: list, key: tuple) -> list[ScoredPatches]:
    """Score the visitor's images; the scores are kept while the images and their scale are the same."""
    state, shelf = st.session_state, open_shelf()
    mpp = SCALES.get(state.get("scale"))
    if "visitor" not in state:
        state.visitor = object()
    answer = shelf.get(state.visitor, (key, mpp))
    if answer is None:
        bar = st.progress(0.0, "Reading the images")
        answer = page.Answer(*page.score_uploads(run, files, mpp=mpp, lock=lock, tell=bar.progress), {})
        bar.empty()
        shelf.put(state.visitor, (key, mpp), answer, page.count_bytes(answer))
    scored, problems, state.pictures = answer
    if mpp is not None or any("micrometres" in problem.reason for problem in problems):
        st.selectbox(
            page.SCALE_LABEL,
            list(SCALES),
            index=None,
            placeholder="Choose the scale",
            key="scale",
            help="For images that do not say it themselves. It is needed to cut them into patches.",
        )
    if problems:
        label = f"{len(problems):,} file{'s' * (len(problems) > 1)} could not be used"
        with st.expander(label, icon=":material/error:", expanded=not scored or len(problems) < 4):
            st.table(
                {
                    "file": [plain(each.name) for each in problems],
                    "why": [plain(each.reason) for each in problems],
                }
            )
    if not scored:
        st.info("No image is left to look at. Send other files, or try the sample.")
    return scored


def show_results(run: Run, lock: threading.Lock, scored: list[ScoredPatches]) -> None:
    threshold, neighbours = ask_how_to_decide(run, scored)
    decided = [prediction.decide_patches(run, each, neighbours=neighbours, threshold=threshold) for each in scored]
    show_summary(run, decided)
    slide, clicked = show_map(run, [each for each in decided if page.has_map(each)])
    show_patches(run, lock, decided, clicked)
    offer_downloads(run, decided, slide)


def ask_how_to_decide(run: Run, scored: list[ScoredPatches]) -> tuple[float | None, bool]:
    """The threshold, None for the run's own, and whether neighbours on a slide count."""
    left, right = st.columns([5, 4], vertical_alignment="center")
    alone = [each for each in scored if not prediction.can_be_smoothed(run, each)]
    neighbours = len(alone) < len(scored) and left.toggle(
        "Smooth over neighbouring patches",
        value=True,
        key="neighbours",
        help="Averages each patch's score with those around it, as the run was fitted to do. Slides with many gaps, "
        "and patches without a place, are judged one by one.",
    )
    decision = prediction.choose_decision(run, neighbours=neighbours)
    if decision.threshold is None:
        left.caption("Each patch is given the most probable of the classes.")
        return None, neighbours
    threshold = ask_for_threshold(run, left, decision, neighbours)
    found = f"Of {decision.fitted_on['images']:,} validation images, at this threshold. "
    found += "The figures of the testing images are in the bar on the left."
    with right.container(horizontal=True):
        for name, value in expected_rates(decision, threshold).items():
            st.metric(f"Expected {name}", f"{value:.1%}", help=found)
    if neighbours and alone:
        own = prediction.choose_decision(run, neighbours=False).threshold
        at = f", from {own:.1%}" if threshold == decision.threshold else ""
        count = sum(len(each.files) for each in alone)
        right.caption(f"For smoothed slides. Judged one by one{at}: {count:,} patch{'es' * (count > 1)}.")
    return (None if threshold == decision.threshold else threshold), neighbours


def ask_for_threshold(run: Run, place, decision: Decision, neighbours: bool) -> float:
    """Show a slider with the thresholds whose expected rates are known exactly; the run's own is among them."""
    key = f"threshold {run.folder} {neighbours}"
    threshold = place.select_slider(
        f"Call a patch {plain(name_class(run.settings, decision.positive))} from a probability of",
        decision.curve["threshold"],
        value=decision.threshold,
        format_func=lambda value: f"{value:.1%}",
        key=key,
    )
    if threshold == decision.threshold:
        point = OPERATING_POINTS.get(decision.operating_point, decision.operating_point)
        place.caption(f"The run's own threshold, fitted on validation: {plain(point)}.")
    else:
        place.button(
            f"Back to the run's own threshold, {decision.threshold:.1%}",
            type="tertiary",
            on_click=lambda: st.session_state.update({key: decision.threshold}),
        )
    return threshold


def show_summary(run: Run, decided: list[DecidedPatches]) -> None:
    predicted = np.concatenate([each.predicted for each in decided])
    if len(predicted) == 1:
        st.markdown(f"**1** patch: called **{label(run, predicted[0])}**")
        return
    counts = np.bincount(predicted, minlength=len(run.decision.classes))
    parts = [
        f"**{count:,}** called {label(run, index)} ({count / len(predicted):.0%})"
        for index, count in reversed(list(enumerate(counts)))
    ]
    st.markdown(f"**{len(predicted):,}** patches: {', '.join(parts)}")


def show_map(run: Run, decided: list[DecidedPatches]) -> tuple[DecidedPatches | None, page.Shown | None]:
    """Show the map of one slide; returns the slide, and the patch that was clicked."""
    if not decided:
        return None, None
    names = [each.scored.slide for each in decided]
    st.subheader("The slide" if len(names) > 1 else f"The slide {plain(names[0])}")
    classes, positive = run.decision.classes, run.decision.positive
    layers, which, what = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = which.selectbox("Slide", names, key="slide") if len(names) > 1 else names[0]
    layer = layers.segmented_control(
        "Over the tissue", slide_map.LAYERS, default="Probability", required=True, key="layer"
    )
    shown = positive
    if positive is None:
        shown = what.selectbox("Class", classes, format_func=lambda one: name_class(run.settings, one), key="class")
    slide = decided[names.index(name)]
    rows, specification = page.draw_map(run, slide, classes.index(shown), layer)
    event = st.vega_lite_chart(
        rows, specification, key=f"map {name}", on_select="rerun", selection_mode="clicked", alt=f"Map of slide {name}"
    )
    st.caption("Turn the wheel to zoom, drag to move, double-click to see all; click a patch to look at it below.")
    chosen = event.selection.get("clicked") or []
    row = int(chosen[0]["patch"]) if chosen else None
    return slide, page.Shown(slide, row) if row is not None and row < len(slide.predicted) else None


def show_patches(run: Run, lock: threading.Lock, decided: list[DecidedPatches], clicked: page.Shown | None) -> None:
    """Show the patch that was clicked, or a page of all, each with Grad-CAM, its probabilities and its decision."""
    st.subheader("The patches")
    classes, positive = run.decision.classes, run.decision.positive
    ordering, explaining = st.columns(2)
    explained = explaining.selectbox(
        "Grad-CAM: which regions support",
        classes,
        index=classes.index(positive) if positive else 0,
        format_func=lambda name: name_class(run.settings, name),
        key="explained",
    )
    if clicked:
        ordering.markdown("The patch that you clicked on the map. Click beside the tissue to see all.")
        patches = [clicked]
    else:
        order = ordering.selectbox("Order", page.ORDERS, key="order")
        patches = page.list_patches(run, decided, order)
    st.caption("Left the patch, right Grad-CAM over it: yellow supports the class most, no colour not at all.")
    pages = -(-len(patches) // CARDS_A_PAGE)
    number = st.pagination(pages, key=f"page of {pages}") if pages > 1 else 1
    shown = patches[(number - 1) * CARDS_A_PAGE : number * CARDS_A_PAGE]
    with lock:
        pictures = page.explain_patches(run, shown, classes.index(explained), st.session_state.pictures)
    for start in range(0, len(shown), CARDS_A_ROW):
        for place, patch, picture in zip(st.columns(CARDS_A_ROW), shown[start:], pictures[start:], strict=False):
            with place.container(border=True):
                show_patch(run, patch, picture)


def show_patch(run: Run, patch: page.Shown, picture: np.ndarray) -> None:
    (scored, probabilities, predicted, _), row = patch
    index, positive = predicted[row], run.decision.positive
    is_positive = run.decision.classes[index] == positive or positive is None
    st.badge(f"called {label(run, index)}", color="orange" if is_positive else "gray")
    st.image(picture, width="stretch", alt="The patch, and Grad-CAM over it")
    for index, share in reversed(list(enumerate(probabilities[row].tolist()))):
        st.progress(share, f"{label(run, index)} {share:.1%}")
    file = scored.files[row]
    place = f"x {scored.x[row]}, y {scored.y[row]} of {file}"
    st.caption(plain(place if file == scored.slide else Path(file).name))


def offer_downloads(run: Run, decided: list[DecidedPatches], slide: DecidedPatches | None) -> None:
    st.subheader("Results to keep")
    left, right = st.columns(2)
    left.download_button(
        "All patches as CSV",
        page.predictions_csv(run, decided),
        "predictions.csv",
        "text/csv",
        icon=":material/table:",
        on_click="ignore",
        width="stretch",
    )
    if slide:
        right.download_button(
            f"Regions of {plain(Path(slide.scored.slide).name)} as GeoJSON",
            json.dumps(results.find_regions(run, slide)),
            "regions.geojson",
            "application/geo+json",
            icon=":material/polyline:",
            on_click="ignore",
            width="stretch",
            help="Outlines for QuPath, in pixels of the slide.",
        )


def label(run: Run, index: int) -> str:
    """A class by its index, as people call it."""
    return plain(name_class(run.settings, run.decision.classes[index]))


def plain(text: str) -> str:
    """Text that Markdown shows as it is: a file's name must not become a link or a picture."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])", r"\\\1", text)


STYLE = """<style>
.block-container {max-width: 1180px; padding-top: 2.2rem; padding-bottom: 3rem}
h1 {font-size: 2rem !important; padding-bottom: 0.2rem !important}
[data-testid="stSidebar"] table {font-size: 0.8rem}
[data-testid="stSidebar"] :is(td, th) {padding: 0.25rem 0.35rem !important; border: none !important}
[data-testid="stSidebar"] td:nth-child(2) {white-space: nowrap}
</style>"""

if __name__ == "__main__":
    main()
