"""A run in the browser: probabilities, decisions, Grad-CAM and slide maps of the images that a visitor brings.

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
from cancernet.data.images import EXTENSIONS
from cancernet.judging.decision import Decision, expected_rates
from cancernet.learning import explain
from cancernet.reporting import wording
from cancernet.run import MODEL, Classifier, find_runs, load_classifier, read_report
from cancernet.using import page, prediction, slide_map, uploads

PURPOSE = "For research and teaching, not for diagnosis."
KEPT = "Images stay in this computer's memory until the page is closed; nothing is written to disk."
WELCOME = (
    "Send images of H&E-stained breast tissue, or try the sample. Each patch comes back with its probabilities, the "
    "decision and Grad-CAM, a slide also with a map. The run's own figures are in the bar on the left (» opens it)."
)
CARD_METRICS = ("sensitivity", "specificity", "ppv", "npv", "auroc", "accuracy", "macro_f1", "ece")
CARDS_A_PAGE, CARDS_A_ROW = 6, 3
OPERATING_POINTS = {"balanced": "where sensitivity and specificity together should be highest"}
SCALES = {"0.25 (a scan at 40x)": 0.25, "0.5 (20x)": 0.5, "1 (10x)": 1.0, "2 (5x)": 2.0, "4 (IDC patches)": 4.0}


def main() -> None:
    st.set_page_config(page_title="CancerNet", layout="wide")
    st.html(STYLE)
    st.title("CancerNet")
    st.caption(f"**{PURPOSE}** {KEPT}")
    try:
        run = choose_run(sys.argv[1:])
        model = run / MODEL
        loaded, lock = load_run(str(run), model.stat().st_mtime_ns if model.is_file() else 0)
        with st.sidebar:
            show_card(run, loaded)
        files, key = ask_for_images()
        if files is None:
            st.info(WELCOME, icon=":material/info:")
            return
        sources = score_once(loaded, lock, files, (str(run), *key))
        if sources:
            show_results(loaded, lock, sources)
    except InputError as error:
        st.error(plain(str(error)))


def choose_run(argv: Sequence[str]) -> Path:
    parser = Parser(prog="streamlit run app.py --", description=__doc__)
    parser.add_argument("--run", type=Path, help=f"folder made by train_model.py (the newest under {RUNS})")
    given = parser.parse_args(argv).run
    runs = find_runs(given.resolve().parent if given else RUNS)
    if given:
        runs = [given, *(run for run in runs if run.resolve() != given.resolve())]
    if not runs:
        raise InputError(
            f"There is no finished run under {RUNS}. Train one with train_model.py, or give -- --run FOLDER."
        )
    return st.sidebar.selectbox("Run", runs, format_func=lambda run: run.resolve().name, key="run")


@st.cache_resource(max_entries=2, show_spinner="Loading the network ...")
def load_run(run: str, changed: int) -> tuple[Classifier, threading.Lock]:
    """A run and the lock under which it answers, for all visitors; `changed` makes a run that was trained again new."""
    # Streamlit ends every click with this. It would throw away what TensorFlow has compiled for the network, half a
    # second's work, and that while another visitor's patches may be in it.
    keras.backend.clear_session = lambda: None
    loaded = load_classifier(Path(run))
    size, _, channels = loaded.model.input_shape[1:]
    for count in (1, 2, 3):  # the first answers take seconds, and no visitor should wait for them
        prediction.score_images(loaded, np.zeros((count, size, size, channels), np.uint8))
    explain.grad_cam(loaded.model, np.zeros((1, size, size, channels), np.uint8), 0)
    return loaded, threading.Lock()


def show_card(run: Path, loaded: Classifier) -> None:
    st.warning(PURPOSE, icon=":material/school:")
    report = read_report(run)
    if not report:
        st.info("This run has no report.json, so nothing is known of how good it is.")
        return
    st.markdown(f"**How good it is.** {plain(report['statement'])}")
    rows = ["| | | " + plain(f"{report['interval']['level']:.0%} interval") + " |", "|:--|--:|:--|"]
    for name in CARD_METRICS:
        if name in report["metrics"]:
            metric = report["metrics"][name]
            label = wording.METRICS[name][0].split(" (")[0]
            cells = label, wording.number(metric["value"]), wording.interval(metric)
            rows.append("| " + " | ".join(map(plain, cells)) + " |")
    st.markdown("\n".join(rows))
    st.caption(f"Intervals are over {report['interval']['over']}.")
    training, experiment = report["data"]["splits"]["training"], loaded.config["experiment"]
    whose = f" of {training['patients']:,} patients" if report["data"]["patients_known"] else ""
    counts = "".join(
        f"\n- {plain(wording.class_label(report, name))}: {count:,}" for name, count in training["classes"].items()
    )
    st.markdown(f"**What it was trained on.** {training['images']:,} images{whose}:{counts}")
    st.caption(
        f"{plain(experiment['model'])}, {experiment['image_size']} pixels, {experiment['epochs']} epochs, "
        f"{plain(report['created'])}."
    )
    for warning in wording.all_warnings(report):
        st.warning(plain(warning))


def ask_for_images() -> tuple[list | None, tuple]:
    """Name and bytes of what the visitor sent, or the sample, None if nothing; and what tells it from other uploads."""
    state, limits = st.session_state, uploads.Limits()
    given, or_else = st.columns([3, 1], vertical_alignment="bottom")
    files = given.file_uploader(
        "Patches, a zip of a patient's patches, or a large image",
        type=[ending[1:] for ending in (*EXTENSIONS, ".zip")],
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


def score_once(loaded: Classifier, lock: threading.Lock, files: list, key: tuple) -> list[page.Source]:
    """The network's answers to the visitor's images, made once and kept while the same images are there."""
    state = st.session_state
    mpp = SCALES.get(state.get("scale"))
    if state.get("scored_key") != (key, mpp):
        bar = st.progress(0.0, "Reading the images")
        with lock:
            state.scored, state.problems = page.score_uploads(
                loaded, files, mpp=mpp, tell=lambda share, text: bar.progress(share, text)
            )
        bar.empty()
        state.scored_key, state.pictures = (key, mpp), {}
    if mpp is not None or any("micrometres" in problem.reason for problem in state.problems):
        st.selectbox(
            page.SCALE_LABEL,
            list(SCALES),
            index=None,
            placeholder="Choose the scale",
            key="scale",
            help="Of those that do not say so themselves. With it they can be cut into patches.",
        )
    if state.problems:
        label = f"{len(state.problems):,} file{'s' * (len(state.problems) > 1)} could not be used"
        with st.expander(label, icon=":material/error:", expanded=not state.scored or len(state.problems) < 4):
            st.table(
                {
                    "file": [plain(each.name) for each in state.problems],
                    "why": [plain(each.reason) for each in state.problems],
                }
            )
    if not state.scored:
        st.info("No image is left to look at. Send other files, or try the sample.")
    return state.scored


def show_results(loaded: Classifier, lock: threading.Lock, sources: list[page.Source]) -> None:
    threshold, neighbours = ask_how_to_decide(loaded, sources)
    judged = page.judge(loaded, sources, neighbours=neighbours, threshold=threshold)
    for each in judged:
        if each.problem:
            st.warning(f"{plain(each.problem)} Until then they are judged one by one, without a map.")
    show_summary(loaded, judged)
    slide, clicked = show_map(loaded, [each for each in judged if page.has_map(each)])
    show_patches(loaded, lock, judged, clicked)
    offer_downloads(loaded, judged, slide)


def ask_how_to_decide(loaded: Classifier, sources: list[page.Source]) -> tuple[float | None, bool]:
    """The threshold, None for the run's own, and whether neighbours on a slide count."""
    left, right = st.columns([5, 4], vertical_alignment="center")
    rough = [source for source in sources if not page.can_be_smoothed(loaded, source)]
    neighbours = len(rough) < len(sources) and left.toggle(
        "Smooth over neighbouring patches",
        value=True,
        key="neighbours",
        help="Averages each patch's score with those around it, as the run was fitted to do. Slides with many gaps, "
        "and patches without a place, are judged one by one.",
    )
    decision = page.choose_decision(loaded, neighbours=neighbours)
    if decision.threshold is None:
        left.caption("Of several classes the most probable one is decided on.")
        return None, neighbours
    threshold = ask_for_threshold(loaded, left, decision, neighbours)
    expected = expected_rates(decision, threshold)
    images = decision.fitted_on["images"]
    found = f"Of {images:,} validation images, at this threshold. Those of testing are in the bar on the left."
    with right.container(horizontal=True):
        for name, value in expected.items():
            st.metric(f"Expected {name}", f"{value:.1%}", help=found)
    if neighbours and rough:
        alone = page.choose_decision(loaded, neighbours=False).threshold
        at = f", from {alone:.1%}" if threshold == decision.threshold else ""
        count = sum(len(source.images) for source in rough)
        right.caption(f"For smoothed slides. Judged one by one{at}: {count:,} patch{'es' * (count > 1)}.")
    return (None if threshold == decision.threshold else threshold), neighbours


def ask_for_threshold(loaded: Classifier, place, decision: Decision, neighbours: bool) -> float:
    """The slider stops where the expected rates are known exactly, the run's own threshold among the stops."""
    key = f"threshold {loaded.run} {neighbours}"
    threshold = place.select_slider(
        f"Call a patch {plain(prediction.class_label(loaded, decision.positive))} from a probability of",
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


def show_summary(loaded: Classifier, judged: list[page.Judged]) -> None:
    predicted = np.concatenate([each.predicted for each in judged])
    parts = []
    if len(predicted) == 1:
        name = prediction.class_label(loaded, loaded.decision.classes[predicted[0]])
        st.markdown(f"**1** patch: called **{plain(name)}**")
        return
    for index, name in reversed(list(enumerate(loaded.decision.classes))):
        count = int((predicted == index).sum())
        label = plain(prediction.class_label(loaded, name))
        parts.append(f"**{count:,}** called {label} ({count / len(predicted):.0%})")
    st.markdown(f"**{len(predicted):,}** patches: {', '.join(parts)}")


def show_map(loaded: Classifier, judged: list[page.Judged]) -> tuple[page.Judged | None, page.Patch | None]:
    """The map of one slide; returns the slide, and the patch that was clicked."""
    if not judged:
        return None, None
    names = [each.source.slide for each in judged]
    st.subheader("The slide" if len(names) > 1 else f"The slide {plain(names[0])}")
    classes, positive = loaded.decision.classes, loaded.decision.positive
    layers, which, what = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = which.selectbox("Slide", names, key="slide") if len(names) > 1 else names[0]
    layer = layers.segmented_control(
        "Over the tissue", slide_map.LAYERS, default="Probability", required=True, key="layer"
    )
    shown = positive
    if positive is None:
        shown = what.selectbox(
            "Class", classes, format_func=lambda one: prediction.class_label(loaded, one), key="class"
        )
    slide = judged[names.index(name)]
    rows, specification = page.draw_map(loaded, slide, classes.index(shown), layer)
    event = st.vega_lite_chart(
        rows, specification, key=f"map {name}", on_select="rerun", selection_mode="clicked", alt=f"Map of slide {name}"
    )
    st.caption("Turn the wheel to zoom, drag to move, double-click to see all; click a patch to look at it below.")
    chosen = event.selection.get("clicked") or []
    row = int(chosen[0]["patch"]) if chosen else None
    return slide, page.Patch(slide, row) if row is not None and row < len(slide.predicted) else None


def show_patches(loaded, lock, judged: list, clicked: page.Patch | None) -> None:
    """A page of patches, each with Grad-CAM, its probabilities and its decision; or the one that was clicked."""
    st.subheader("The patches")
    classes, positive = loaded.decision.classes, loaded.decision.positive
    ordering, explaining = st.columns(2)
    explained = explaining.selectbox(
        "Grad-CAM: what speaks for",
        classes,
        index=classes.index(positive) if positive else 0,
        format_func=lambda name: prediction.class_label(loaded, name),
        key="explained",
    )
    if clicked:
        ordering.markdown("The patch that you clicked on the map. Click beside the tissue to see all.")
        patches = [clicked]
    else:
        order = ordering.selectbox("Order", page.ORDERS, key="order")
        patches = page.list_patches(loaded, judged, order)
    st.caption("Left the patch, right Grad-CAM over it: yellow speaks most for the class, no colour not at all.")
    pages = -(-len(patches) // CARDS_A_PAGE)
    number = st.pagination(pages, key=f"page of {pages}") if pages > 1 else 1
    shown = patches[(number - 1) * CARDS_A_PAGE : number * CARDS_A_PAGE]
    with lock:
        pictures = page.explain_patches(loaded, shown, classes.index(explained), st.session_state.pictures)
    for start in range(0, len(shown), CARDS_A_ROW):
        for place, patch, picture in zip(st.columns(CARDS_A_ROW), shown[start:], pictures[start:], strict=False):
            with place.container(border=True):
                show_patch(loaded, patch, picture)


def show_patch(loaded: Classifier, patch: page.Patch, picture: np.ndarray) -> None:
    source, probabilities, predicted = patch.judged[:3]
    classes, answer = loaded.decision.classes, source.prediction
    decided = classes[predicted[patch.row]]
    looked_for = decided == (loaded.decision.positive or decided)
    st.badge(f"called {plain(prediction.class_label(loaded, decided))}", color="orange" if looked_for else "gray")
    st.image(picture, width="stretch", alt="The patch, and Grad-CAM over it")
    for index, name in reversed(list(enumerate(classes))):
        share = float(probabilities[patch.row, index])
        st.progress(share, f"{plain(prediction.class_label(loaded, name))} {share:.1%}")
    name, x, y = answer.names[patch.row], answer.x[patch.row], answer.y[patch.row]
    st.caption(plain(f"x {x}, y {y} of {name}" if name == source.slide else Path(name).name))


def offer_downloads(loaded: Classifier, judged: list[page.Judged], slide: page.Judged | None) -> None:
    st.subheader("Results to keep")
    left, right = st.columns(2)
    left.download_button(
        "All patches as CSV",
        page.predictions_csv(loaded, judged),
        "predictions.csv",
        "text/csv",
        icon=":material/table:",
        on_click="ignore",
        width="stretch",
    )
    if slide:
        right.download_button(
            f"Regions of {plain(Path(slide.source.slide).name)} as GeoJSON",
            json.dumps(prediction.find_regions(loaded, slide.source.prediction, *slide[1:3])),
            "regions.geojson",
            "application/geo+json",
            icon=":material/polyline:",
            on_click="ignore",
            width="stretch",
            help="Outlines for QuPath, in pixels of the slide.",
        )


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
