"""A run in the browser: probabilities, decisions, Grad-CAM and slide maps of the images that a visitor brings.

Start it with `streamlit run app.py -- --run runs/cancernet`, or without an argument for the newest run under runs/.
"""

import io
import json
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import streamlit as st

from cancernet import InputError
from cancernet.command_line import Parser, quiet_import

if "keras" not in sys.modules:  # this file is run again at every click
    with quiet_import():
        import keras  # noqa: F401

from cancernet import explain, prediction, slide_map, slides, uploads, wording
from cancernet.classifier import Classifier, find_runs, load_classifier
from cancernet.config import RUNS
from cancernet.dataset import find_place
from cancernet.decision import Decision, expected_rates
from cancernet.images import EXTENSIONS, fit_image
from cancernet.prediction import Prediction

PURPOSE = "For research and teaching, not for diagnosis."
KEPT = "Images stay in this computer's memory until the page is closed; nothing is written to disk."
CARD_METRICS = ("sensitivity", "specificity", "ppv", "npv", "auroc", "accuracy", "macro_f1", "ece")
CARDS_A_PAGE = 6
LEAST_ON_A_MAP = 4  # patches of a slide
SCALES = {"0.25 (a scan at 40x)": 0.25, "0.5 (20x)": 0.5, "1 (10x)": 1.0, "2 (5x)": 2.0, "4 (IDC patches)": 4.0}
ORDERS = ("Most probable first", "Closest to the threshold first", "In the order sent")


class Source(NamedTuple):
    """Images that belong together: all patches, or one large picture cut into patches."""

    prediction: Prediction
    images: list[np.ndarray]  # uint8 [h, w, channels] of each patch


class Judged(NamedTuple):
    """A source with its decisions at the threshold in use."""

    source: Source
    probabilities: np.ndarray  # [n, k]
    predicted: np.ndarray  # [n]


def main() -> None:
    st.set_page_config(page_title="CancerNet", page_icon=":material/biotech:", layout="wide")
    st.html(STYLE)
    st.title("CancerNet")
    st.caption(f"**{PURPOSE}** {KEPT}")
    try:
        run = choose_run(sys.argv[1:])
        loaded, lock = load_run(str(run), (run / "model.keras").stat().st_mtime_ns)
        with st.sidebar:
            show_card(run, loaded)
        files, key = ask_for_images(loaded)
        if files is None:
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
    loaded = load_classifier(Path(run))
    size, _, channels = loaded.model.input_shape[1:]
    for count in (1, 2, 3):  # the first answers take seconds, and no visitor should wait for them
        prediction.score_images(loaded, np.zeros((count, size, size, channels), np.uint8))
    explain.grad_cam(loaded.model, np.zeros((1, size, size, channels), np.uint8), 0)
    return loaded, threading.Lock()


def show_card(run: Path, loaded: Classifier) -> None:
    st.warning(PURPOSE, icon=":material/school:")
    report = read_report(run)
    if report is None:
        st.info("This run has no report.json, so nothing is known of how good it is.")
        return
    st.markdown(f"**How good it is.** {plain(report['statement'])}")
    rows = ["| | | " + plain(f"{report['interval']['level']:.0%} interval") + " |", "|:--|--:|:--|"]
    for name in CARD_METRICS:
        if name in report["metrics"]:
            metric = report["metrics"][name]
            cells = wording.METRICS[name][0], wording.number(metric["value"]), wording.interval(metric)
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


def read_report(run: Path) -> dict | None:
    path = run / "report.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged. Train again, or copy the run folder again.") from error


def ask_for_images(loaded: Classifier) -> tuple[list | None, tuple]:
    """Name and bytes of what the visitor sent, or the sample, None if nothing; and what tells it from other uploads."""
    state, limits = st.session_state, uploads.Limits()
    started = bool(state.get("files")) or state.get("sample", False)
    with st.expander("Images", expanded=True) if started else st.container():
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
        if or_else.button("Try a sample slide", icon=":material/colorize:", width="stretch"):
            state.sample = True
        or_else.caption("Made-up breast tissue of no real patient.")
        scale = ask_for_scale(loaded) if files or state.get("sample") else None
    if state.get("sample"):
        return uploads.sample_uploads(), ("sample", scale)
    if files:
        return [(file.name, file.getvalue()) for file in files], (*(file.file_id for file in files), scale)
    return None, ()


def ask_for_scale(loaded: Classifier) -> float | None:
    """Micrometres a pixel of large images; None for a run that does not cut images into patches, or where unknown."""
    if prediction.training_mpp(loaded) is None:
        return None
    chosen = st.selectbox(
        "Micrometres per pixel of large images",
        list(SCALES),
        index=None,
        placeholder="Needed for a large image that does not say so itself",
        key="scale",
    )
    return SCALES.get(chosen)


def score_once(loaded: Classifier, lock: threading.Lock, files: list, key: tuple) -> list[Source]:
    """The network's answers to the visitor's images, made once and kept while the same images are there."""
    state = st.session_state
    if state.get("scored_key") != key:
        state.scored, state.problems, state.overlays = *score(loaded, lock, files, key[-1]), {}
        state.scored_key = key
    if state.problems:
        label = f"{len(state.problems):,} file{'s' * (len(state.problems) > 1)} could not be used"
        with st.expander(label, icon=":material/error:", expanded=not state.scored or len(state.problems) < 4):
            st.dataframe(
                {"file": [problem.name for problem in state.problems], "why": [p.reason for p in state.problems]},
                hide_index=True,
            )
    if not state.scored:
        st.info("No image is left to look at. Send other files, or try the sample.")
    return state.scored


def score(loaded: Classifier, lock: threading.Lock, files: list, mpp: float | None) -> tuple[list, list]:
    bar = st.progress(0.0, "Reading the images ...")
    pictures, problems = uploads.read_uploads(
        files,
        channels=loaded.model.input_shape[-1],
        progress=lambda done, of: bar.progress(done / of, f"Reading image {done:,} of {of:,}"),
    )
    cuts = prediction.training_mpp(loaded) is not None and loaded.model.input_shape[-1] == 3
    large = [picture for picture in pictures if cuts and uploads.is_large(picture)]
    patches = [picture for picture in pictures if not (cuts and uploads.is_large(picture))]
    sources = []
    if patches:
        places = [find_place(picture.name) for picture in patches]
        images, names = [picture.image for picture in patches], [picture.name for picture in patches]
        sources.append(predict(loaded, lock, bar, images, names, *map(list, zip(*places, strict=True))))
    for picture in large:
        try:
            tiles, file_scale = uploads.cut_picture(picture, target_mpp=prediction.training_mpp(loaded), mpp=mpp)
        except InputError as error:
            problems.append(uploads.Problem(picture.name, str(error).removeprefix(f"{picture.name}: ")))
            continue
        names, x, y = [picture.name] * len(tiles), [tile.x for tile in tiles], [tile.y for tile in tiles]
        source = predict(loaded, lock, bar, [tile.image for tile in tiles], names, names, x, y)
        sources.append(source._replace(prediction=source.prediction._replace(file_scale=file_scale)))
    bar.empty()
    return sources, problems


def predict(loaded, lock, bar, images, names, patients, x, y) -> Source:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        bar.progress(done / len(images), f"Judging patch {done:,} of {len(images):,}")

    with lock:
        answer = prediction.predict_arrays(loaded, images, names, patients, x, y, progress=tell)
    return Source(answer, images)


def show_results(loaded: Classifier, lock: threading.Lock, sources: list[Source]) -> None:
    threshold, neighbours = ask_how_to_decide(loaded, sources)
    judged = []
    for source in sources:
        try:
            decided = prediction.decide_prediction(
                loaded, source.prediction, neighbours=neighbours, threshold=threshold
            )
        except InputError as error:
            st.warning(f"{plain(str(error))} Until then every patch is judged on its own.")
            decided = prediction.decide_prediction(loaded, source.prediction, neighbours=False, threshold=threshold)
        judged.append(Judged(source, *decided))
    show_summary(loaded, judged)
    slide, clicked = show_map(loaded, judged)
    show_patches(loaded, lock, judged, clicked, threshold)
    offer_downloads(loaded, judged, slide)


def ask_how_to_decide(loaded: Classifier, sources: list[Source]) -> tuple[float | None, bool]:
    """The threshold, None for the run's own, and whether neighbours on a slide count."""
    smooths = loaded.decision.without_neighbours is not None and any(map(is_whole_slide, sources))
    left, middle, right = st.columns([5, 2, 2], vertical_alignment="center")
    neighbours = smooths and left.toggle(
        "Let neighbours on the slide speak",
        value=True,
        key="neighbours",
        help="Averages each patch's score with those around it, as the run was fitted to do. Slides with many gaps, "
        "and patches without a place, are judged one by one.",
    )
    decision = loaded.decision if neighbours else loaded.decision.without_neighbours or loaded.decision
    if decision.threshold is None:
        left.caption("Of several classes the most probable one is decided on.")
        return None, neighbours
    threshold = ask_for_threshold(loaded, left, decision, neighbours)
    expected = expected_rates(decision, threshold)
    found = f"{decision.fitted_on['images']:,} validation images"
    middle.metric("Expected sensitivity", f"{expected['sensitivity']:.1%}", help=f"On {found}, at this threshold.")
    right.metric("Expected specificity", f"{expected['specificity']:.1%}", help=f"On {found}, at this threshold.")
    return (None if threshold == decision.threshold else threshold), neighbours


def ask_for_threshold(loaded: Classifier, place, decision: Decision, neighbours: bool) -> float:
    """The slider stops where the expected rates are known exactly, the run's own threshold among the stops."""
    key = f"threshold {loaded.run} {neighbours}"
    event = plain(prediction.class_label(loaded, decision.positive))
    threshold = place.select_slider(
        f"Call a patch {event} from a probability of",
        decision.curve["threshold"],
        value=decision.threshold,
        format_func=lambda value: f"{value:.1%}",
        key=key,
    )
    if threshold != decision.threshold:
        own = f"{decision.threshold:.1%}"
        place.button(
            f"Back to the run's own threshold, {own}",
            type="tertiary",
            on_click=lambda: st.session_state.update({key: decision.threshold}),
        )
    else:
        place.caption(f"The run's own threshold ({plain(decision.operating_point)}), fitted on validation.")
    return threshold


def is_whole_slide(source: Source) -> bool:
    """Whether any slide of a source has few enough gaps for its neighbours to count."""
    answer = source.prediction
    try:
        found = slides.iterate_slides(answer.patients, answer.x, answer.y)
        groups = [
            [[axis[i] for i in members] for axis in (answer.patients, answer.x, answer.y)] for _, members, _, _ in found
        ]
        return any(slides.mean_neighbours(*group) >= slides.LEAST_NEIGHBOURS for group in groups)
    except InputError:  # overlapping patches: said where the decision is made
        return True


def show_summary(loaded: Classifier, judged: list[Judged]) -> None:
    predicted = np.concatenate([each.predicted for each in judged])
    total = len(predicted)
    parts = []
    for index, name in enumerate(loaded.decision.classes):
        count = int((predicted == index).sum())
        parts.append(f"**{count:,}** called {plain(prediction.class_label(loaded, name))} ({count / total:.0%})")
    st.markdown(f"**{total:,}** patch{'es' * (total > 1)}: " + ", ".join(reversed(parts)))


def find_slides(judged: list[Judged]) -> dict[str, tuple[Judged, np.ndarray]]:
    """Each slide with enough patches for a map: its source, and the indices of its patches."""
    found = {}
    for each in judged:
        answer = each.source.prediction
        placed = [i for i in range(len(answer.names)) if answer.patients[i] and answer.x[i] is not None]
        for slide in dict.fromkeys(answer.patients[i] for i in placed):
            members = np.array([i for i in placed if answer.patients[i] == slide])
            if len(members) >= LEAST_ON_A_MAP:
                found[slide] = each, members
    return found


def show_map(loaded: Classifier, judged: list[Judged]) -> tuple[tuple | None, tuple | None]:
    """The map of one slide; returns the slide, and the patch that was clicked as (its source, its index)."""
    found = find_slides(judged)
    if not found:
        return None, None
    st.subheader("The slide")
    which, what = st.columns([1, 1], vertical_alignment="bottom")
    name = which.selectbox("Slide", list(found), key="slide") if len(found) > 1 else next(iter(found))
    layer = what.segmented_control(
        "Over the tissue",
        slide_map.LAYERS,
        default="Probability",
        required=True,
        key="layer",
        label_visibility="collapsed",
    )
    each, members = found[name]
    classes, positive = loaded.decision.classes, loaded.decision.positive
    shown = classes.index(positive or classes[-1])
    if positive is None:
        shown = classes.index(
            which.selectbox("Probability of", classes, format_func=lambda one: prediction.class_label(loaded, one))
        )
    answer = pick(each.source.prediction, members)
    try:
        picture, (left, top) = slides.stitch_slide(
            answer.thumbnails, answer.x, answer.y, tile_pixels=answer.thumbnail_pixels
        )
    except InputError as error:
        st.warning(plain(str(error)))
        return None, None
    height, width = (side * slides.PATCH_STEP / answer.thumbnail_pixels for side in picture.shape[:2])
    words = [prediction.class_label(loaded, one) for one in classes]
    order = [words[shown], *(word for word in words if word != words[shown])]
    specification = slide_map.map_specification(
        picture, (left, top, left + width, top + height), event=words[shown], decisions=order, layer=layer
    )
    rows = slide_map.map_rows(
        answer.x,
        answer.y,
        slides.PATCH_STEP,
        names=answer.names,
        probability=each.probabilities[members, shown],
        decision=[words[index] for index in each.predicted[members]],
    )
    event = st.vega_lite_chart(
        rows, specification, key=f"map {name}", on_select="rerun", selection_mode="clicked", alt=f"Map of slide {name}"
    )
    st.caption("Turn the wheel to zoom, drag to move, double-click to see all; click a patch to look at it below.")
    chosen = event.selection.get("clicked") or []
    clicked = (each, int(members[chosen[0]["patch"]])) if chosen and chosen[0]["patch"] < len(members) else None
    return (name, each, members), clicked


def pick(answer: Prediction, members: np.ndarray) -> Prediction:
    """The same prediction of some of its patches."""
    columns = {
        name: [getattr(answer, name)[i] for i in members] for name in ("names", "patients", "x", "y", "thumbnails")
    }
    return answer._replace(**columns, scores=answer.scores[members])


def show_patches(loaded, lock, judged: list[Judged], clicked: tuple | None, threshold: float | None) -> None:
    st.subheader("The patches")
    classes, positive = loaded.decision.classes, loaded.decision.positive
    index = classes.index(positive) if positive else None
    ordering, explaining = st.columns(2)
    entries = [(each, row) for each in judged for row in range(len(each.predicted))]
    if clicked:
        entries = [clicked]
        ordering.markdown("The patch that you clicked on the map. Click beside the tissue to see all.")
    elif len(entries) > 1:
        order = ordering.selectbox("Order", ORDERS, key="order")
        entries = sort_entries(entries, index, ORDERS.index(order), threshold or loaded.decision.threshold)
    explained = explaining.selectbox(
        "Show with Grad-CAM what speaks for",
        classes,
        index=index if positive else 0,
        format_func=lambda name: prediction.class_label(loaded, name),
        key="explained",
    )
    pages = -(-len(entries) // CARDS_A_PAGE)
    page = st.pagination(pages, key=f"page of {pages}") if pages > 1 else 1
    shown = entries[(page - 1) * CARDS_A_PAGE : page * CARDS_A_PAGE]
    overlays = explain_entries(loaded, lock, shown, classes.index(explained))
    for start in range(0, len(shown), 3):
        for column, entry, overlay in zip(st.columns(3), shown[start : start + 3], overlays[start:], strict=False):
            with column:
                show_one(loaded, *entry, overlay)


def sort_entries(entries: list, index: int | None, order: int, threshold: float | None) -> list:
    def probability(entry) -> float:
        shares = entry[0].probabilities[entry[1]]
        return shares.max() if index is None else shares[index]

    if order == 0:
        return sorted(entries, key=lambda entry: -probability(entry))
    if order == 1:
        middle = 0.5 if threshold is None else threshold
        return sorted(entries, key=lambda entry: abs(probability(entry) - middle))
    return entries


def explain_entries(loaded, lock, entries: list, class_index: int) -> list[np.ndarray]:
    """Grad-CAM over each image, made once a patch and class."""
    kept = st.session_state.overlays
    keys = [(id(each.source.images), row, class_index) for each, row in entries]
    missing = [i for i, key in enumerate(keys) if key not in kept]
    if missing:
        images = [entries[i][0].source.images[entries[i][1]] for i in missing]
        size = loaded.model.input_shape[1]
        fitted = np.stack([fit_image(image, size) for image in images])
        with lock:
            heat = explain.grad_cam(loaded.model, fitted, class_index)
        for i, image, warm in zip(missing, fitted, heat, strict=True):
            kept[keys[i]] = explain.overlay(image, warm)
    return [kept[key] for key in keys]


def show_one(loaded: Classifier, each: Judged, row: int, overlay: np.ndarray) -> None:
    answer, classes = each.source.prediction, loaded.decision.classes
    place = "" if answer.x[row] is None else f" at x {answer.x[row]}, y {answer.y[row]}"
    decided = plain(prediction.class_label(loaded, classes[each.predicted[row]]))
    with st.container(border=True):
        st.markdown(f"**{decided}**")
        picture, seen = st.columns(2, gap="small", wrap=False)
        picture.image(enlarge(each.source.images[row]), width="stretch", alt="The patch")
        seen.image(enlarge(overlay), width="stretch", alt="Grad-CAM")
        for index, name in reversed(list(enumerate(classes))):
            share = float(each.probabilities[row, index])
            st.progress(share, f"{plain(prediction.class_label(loaded, name))} {share:.1%}")
        st.caption(plain(Path(answer.names[row]).name + place))


def enlarge(image: np.ndarray) -> np.ndarray:
    """For the screen: square, 240 pixels a side."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    return fit_image(rgb, 240)


def offer_downloads(loaded: Classifier, judged: list[Judged], slide: tuple | None) -> None:
    st.subheader("The results to keep")
    table = io.StringIO()
    prediction.write_header(table, loaded.decision.classes)
    for each in judged:
        prediction.write_rows(
            table, each.source.prediction, each.probabilities, each.predicted, loaded.decision.classes
        )
    left, right = st.columns(2)
    left.download_button(
        "All patches as CSV",
        table.getvalue(),
        "predictions.csv",
        "text/csv",
        icon=":material/table:",
        on_click="ignore",
        width="stretch",
    )
    if slide:
        name, each, members = slide
        answer = pick(each.source.prediction, members)
        regions = prediction.find_regions(loaded, answer, each.probabilities[members], each.predicted[members])
        right.download_button(
            f"Regions of {Path(name).name} as GeoJSON",
            json.dumps(regions),
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
[data-testid="stSidebar"] table {font-size: 0.82rem}
</style>"""

if __name__ == "__main__":
    main()
