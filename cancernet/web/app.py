"""The page: a Streamlit script that classifies the images of a visitor with a run. Start it with `cancernet app`."""

import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import streamlit as st

from cancernet import CancerNetError, InputError
from cancernet.config import RUNS
from cancernet.data.dataset import label_class
from cancernet.evaluation.metrics import METRICS
from cancernet.models.backend import import_keras
from cancernet.reporting import wording
from cancernet.reporting.schema import Report
from cancernet.run import MODEL, SAMPLES, Run, Settings, find_runs, read_report, read_settings
from cancernet.web import run_summary, uploads
from cancernet.web.answer_cache import AnswerCache
from cancernet.web.run_summary import escape

PURPOSE = "For research and teaching, not for diagnosis."
PRIVACY = "Images stay in the memory of this computer until you close the page; nothing is written to disk."
CACHE_BYTES = 2**27  # for the images of all visitors; one visitor needs at most 450 MB
SCALES = {"0.25 (a scan at 40x)": 0.25, "0.5 (20x)": 0.5, "1 (10x)": 1.0, "2 (5x)": 2.0, "4 (IDC patches)": 4.0}


def main() -> None:
    """Draw the page. What needs no Keras comes first; a thread imports Keras meanwhile."""
    st.set_page_config(page_title="CancerNet", layout="wide")
    st.html(STYLE)
    st.title("CancerNet")
    try:
        folder = choose_run(Path(sys.argv[1]) if sys.argv[1:] else None)
        settings, report = read_settings(folder), read_report(folder, Report)
        st.caption(f"Run **{escape(folder.resolve().name)}**. **{PURPOSE}** {PRIVACY}")
        with st.sidebar:
            show_summary(settings, report)
        images = choose_images(folder, settings)
        if images is None:
            st.info(run_summary.welcome(settings), icon=":material/info:")
        model = folder / MODEL
        loading = start_loading(str(folder), model.stat().st_mtime_ns if model.is_file() else 0)
        if images:
            answer_images(loading, report, *images)
    except CancerNetError as error:
        st.error(escape(str(error)))


def choose_run(given: Path | None) -> Path:
    """Show the runs in the sidebar: the given one and those next to it, or all under RUNS, the newest first."""
    folders = find_runs(given.resolve().parent if given else RUNS)
    if given:
        folders = [given, *(folder for folder in folders if folder.resolve() != given.resolve())]
    if not folders:
        raise InputError(f"There is no finished run under {RUNS}. Train one, or name its folder: cancernet app RUN.")
    return st.sidebar.selectbox("Run", folders, format_func=lambda folder: folder.resolve().name, key="run")


@st.cache_resource(max_entries=2, show_spinner=False)
def start_loading(folder: str, modified: int) -> Future[Run]:
    """Load a run in a thread, once for all visitors, and again when its model file was `modified`."""
    return ThreadPoolExecutor(1).submit(load, Path(folder))


def load(folder: Path) -> Run:
    import_keras()
    from cancernet.web import page

    return page.open_run(folder)


@st.cache_resource(show_spinner=False)
def answer_cache() -> AnswerCache:
    """Return the answers of all visitors; an evicted one is computed again at the visitor's next click."""
    return AnswerCache(CACHE_BYTES)


@st.cache_resource(scope="session", show_spinner=False, on_release=lambda visitor: answer_cache().drop(visitor))
def visitor_key() -> object:
    """Identify this session in the cache. Streamlit releases it when the visitor closes the page."""
    return object()


def show_summary(settings: Settings, report: Report | None) -> None:
    st.warning(PURPOSE, icon=":material/school:")
    if not report:
        st.info("This run has no report.json, so its performance is unknown.")
        return
    training, experiment, interval = report.data.splits["training"], settings.experiment, report.interval
    st.markdown(f"**Performance.** {escape(report.statement)}")
    rows = [f"| | | {interval.level:.0%} interval |", "|:--|--:|:--|"]
    for name in wording.list_shown("run summary", report.metrics):
        metric = report.metrics[name]
        cells = METRICS[name].label.split(" (")[0], wording.number(metric.value), wording.interval(metric)
        rows.append(f"| {' | '.join(map(escape, cells))} |")
    st.markdown("\n".join(rows))
    st.caption(f"Intervals are computed over {interval.over}. {run_summary.name_rates(report, settings)}".rstrip())
    counts = [f"\n- {escape(label_class(report.class_names, name))}: {n:,}" for name, n in training.classes.items()]
    st.markdown(f"**Training data.** {wording.describe_counts(training)}:{''.join(counts)}")
    epochs = report.training and report.training.epochs  # None for heads, which are not trained in epochs
    length = f"{epochs} epochs, " if epochs else ""
    st.caption(escape(f"{experiment.model}, {experiment.image_size} pixels, {length}{report.created}."))
    for warning in wording.list_warnings(report):
        st.warning(escape(warning))


def choose_images(folder: Path, settings: Settings) -> tuple[Callable[[], list[uploads.Upload]], Hashable] | None:
    """Let the visitor upload images or take a sample; returns how to read them, and a key that changes with them."""
    state, limits, of_patches = st.session_state, uploads.Limits(), settings.mpp is not None
    samples = sorted(path for path in (folder / SAMPLES).glob("*/*") if path.is_file())
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    limit = f"Up to {limits.files:,} images and {limits.bytes // 2**20} MB at a time, after unpacking."
    names = " Names such as 10253_idx5_x1351_y1101_class0.png give the position of a patch on its slide."
    annotations = " A GeoJSON file with the name of the slide, as QuPath exports it, has its annotations."
    files = left.file_uploader(
        "Patches, a zip of a patient's patches, a large image or a whole slide" if of_patches else "Images, or a zip",
        type=[ending[1:] for ending in (*uploads.ENDINGS, ".zip", *[uploads.ANNOTATIONS] * of_patches)],
        accept_multiple_files=True,
        key="files",
        on_change=lambda: state.update(sample=False),
        help=limit + (names + annotations) * of_patches,
    )
    if of_patches:
        label, use = "Try a sample slide", "Synthetic breast tissue, not from a patient."
        about = "synthetic tissue, not from a patient. It shows how the page works, not how well the run does."
        read = uploads.sample_uploads
    else:
        label, use = "Try some test images", "Images from the test set, which are stored with the run."
        about = "images from the test set. The folder in front of each name is the true class."

        def read() -> list[uploads.Upload]:
            return [(f"{path.parent.name}/{path.name}", path.read_bytes()) for path in samples]

    if of_patches or samples:
        icon = ":material/image_search:"
        right.button(label, icon=icon, width="stretch", help=use, on_click=lambda: state.update(sample=True))
        if state.get("sample"):
            st.caption(f"**Sample:** {about}")
            return read, (folder, "sample")
    if not files:
        return None
    return lambda: [(file.name, file.getvalue()) for file in files], (folder, *(file.file_id for file in files))


def answer_images(
    loading: Future[Run], report: Report | None, read: Callable[[], list[uploads.Upload]], files: Hashable
) -> None:
    """Show the answers to the visitor's images, which are scored once."""
    with st.spinner("Loading the model ..."):
        run = loading.result()
    from cancernet.web import page, screen

    cache, visitor, mpp = answer_cache(), visitor_key(), SCALES.get(st.session_state.get("scale") or "")
    key = (files, mpp)
    answer = cache.get(visitor, key)
    if answer is None:
        bar = st.progress(0.0, "Reading the images")
        answer = page.answer_uploads(run, read(), mpp=mpp, report_progress=bar.progress)
        bar.empty()
        cache.put(visitor, key, answer, page.count_bytes(answer))
    if mpp is not None or any(page.SCALE_LABEL in problem.reason for problem in answer.problems):
        st.selectbox(
            page.SCALE_LABEL,
            list(SCALES),
            index=None,
            placeholder="Choose the scale",
            key="scale",
            help="For files that do not store their scale, which determines how they are cut into patches.",
        )
    show_problems(answer.problems, expanded=not answer.scores)
    if answer.scores:
        screen.show_answers(run, report, answer)
    else:
        st.info("None of the files could be used. Upload other files, or try the sample.")


def show_problems(problems: Sequence[uploads.Problem], *, expanded: bool) -> None:
    if not problems:
        return
    label = f"{len(problems):,} file{'s' * (len(problems) > 1)} could not be used"
    with st.expander(label, icon=":material/error:", expanded=expanded or len(problems) < 4):
        st.table({"file": [escape(each.name) for each in problems], "why": [escape(each.reason) for each in problems]})


STYLE = """<style>
.block-container {max-width: 1180px; padding-top: 2.2rem; padding-bottom: 3rem}
h1 {font-size: 2rem !important; padding-bottom: 0.2rem !important}
[data-testid="stSidebar"] table {font-size: 0.8rem}
[data-testid="stSidebar"] :is(td, th) {padding: 0.25rem 0.35rem !important; border: none !important}
[data-testid="stSidebar"] td:nth-child(2) {white-space: nowrap}
.predicted {display: inline-block; color: white; border-radius: 0.4rem; padding: 0.1rem 0.55rem; margin-bottom: 0.5rem}
.share {display: grid; grid-template-columns: 1fr auto; font-size: 0.9rem; margin-bottom: 0.35rem}
.share > div {grid-column: 1 / 3; position: relative; height: 0.5rem; border-radius: 0.2rem; background: #e6eaed}
.share > div > div {height: 100%; border-radius: 0.2rem}
.share i {position: absolute; top: -0.2rem; width: 3px; height: 0.9rem; margin-left: -1px; background: #111111}
</style>"""

if __name__ == "__main__":
    main()
