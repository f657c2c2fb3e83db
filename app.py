"""A run in the browser: probabilities, decisions, Grad-CAM and slide maps of the images that a visitor sends.

Start it with `streamlit run app.py -- --run runs/cancernet`, or without an argument for the newest run under runs/.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import streamlit as st

from cancernet import InputError
from cancernet.cli import Parser, quiet_import
from cancernet.config import RUNS
from cancernet.reporting.content import Report
from cancernet.run import MODEL, Run, Settings, find_runs, read_report, read_settings
from cancernet.web import run_summary, uploads
from cancernet.web.answer_cache import Shelf
from cancernet.web.run_summary import plain

PURPOSE = "For research and teaching, not for diagnosis."
KEPT = "Images stay in this computer's memory until the page is closed; nothing is written to disk."
MOST_KEPT_BYTES = 2**27  # of the images of all visitors together; those of one have at most 450 MB
SCALES = {"0.25 (a scan at 40x)": 0.25, "0.5 (20x)": 0.5, "1 (10x)": 1.0, "2 (5x)": 2.0, "4 (IDC patches)": 4.0}


def main() -> None:
    """Show what needs no Keras first: it is loaded meanwhile."""
    st.set_page_config(page_title="CancerNet", layout="wide")
    st.html(STYLE)
    st.title("CancerNet")
    try:
        folder = choose_run(sys.argv[1:])
        settings, report = read_settings(folder), read_report(folder, Report)
        st.caption(f"Run **{plain(folder.resolve().name)}**. **{PURPOSE}** {KEPT}")
        with st.sidebar:
            show_card(settings, report)
        files, key = ask_for_images(settings, run_summary.find_samples(folder))
        if files is None:
            st.info(run_summary.welcome(settings), icon=":material/info:")
        model = folder / MODEL
        loading = begin_to_load(str(folder), model.stat().st_mtime_ns if model.is_file() else 0)
        if files is not None:
            answer_images(loading, report, files, (str(folder), *key))
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


@st.cache_resource(max_entries=2, show_spinner=False)
def begin_to_load(folder: str, changed: int) -> Future[Run]:
    """Begin to load a run for all visitors, while they read the page and choose their images.

    Args:
        changed: when the model was written. A run that was trained again is loaded again.
    """
    return ThreadPoolExecutor(1).submit(load, Path(folder))


def load(folder: Path) -> Run:
    if "keras" not in sys.modules:
        with quiet_import():
            import keras  # noqa: F401
    from cancernet.web import page

    return page.open_run(folder)


@st.cache_resource(show_spinner=False)
def open_shelf() -> Shelf:
    """What is kept of all visitors, a `page.Answer` each; whose was given up is answered again at the next click."""
    return Shelf(MOST_KEPT_BYTES)


@st.cache_resource(scope="session", show_spinner=False, on_release=lambda visitor: open_shelf().drop(visitor))
def name_visitor() -> object:
    """Under what the shelf keeps the answers of this session; when its page is closed they are dropped."""
    return object()


def show_card(settings: Settings, report: Report | None) -> None:
    st.warning(PURPOSE, icon=":material/school:")
    if not report:
        st.info("This run has no report.json, so nothing is known of how good it is.")
        return
    described = run_summary.describe_run(settings, report)
    st.markdown(f"**How good it is.** {plain(described.statement)}")
    rows = [f"| | | {plain(described.interval)} |", "|:--|--:|:--|"]
    st.markdown("\n".join([*rows, *("| " + " | ".join(map(plain, cells)) + " |" for cells in described.figures)]))
    st.caption(f"Intervals are over {described.over}.")
    counts = "".join(f"\n- {plain(count)}" for count in described.classes)
    st.markdown(f"**What it was trained on.** {described.images}:{counts}")
    st.caption(plain(described.network))
    for warning in described.warnings:
        st.warning(plain(warning))


def ask_for_images(settings: Settings, samples: Sequence[Path]) -> tuple[list | None, tuple]:
    """The files that were sent, or the paths of the samples, None for none; and a key that changes with them."""
    state, limits, of_patches = st.session_state, uploads.Limits(), run_summary.is_of_patches(settings)
    given, or_else = st.columns([3, 1], vertical_alignment="bottom")
    limit = f"Up to {limits.files:,} images and {limits.bytes // 2**20} MB at a time, unpacked."
    names = " Names such as 10253_idx5_x1351_y1101_class0.png place patches on their slide."
    files = given.file_uploader(
        "Patches, a zip of a patient's patches, a large image or a whole slide" if of_patches else "Images, or a zip",
        type=[ending[1:] for ending in (*uploads.ENDINGS, ".zip")],
        accept_multiple_files=True,
        key="files",
        on_change=lambda: state.update(sample=False),
        help=limit + names * of_patches,
    )
    if of_patches:
        words, help_text = "Try a sample slide", "Made-up breast tissue of no real patient."
    else:
        words, help_text = "Try some tested images", "Images that this run was tested on, as its folder holds them."
    if (of_patches or samples) and or_else.button(
        words, icon=":material/image_search:", width="stretch", help=help_text
    ):
        state.sample = True
    if state.get("sample") and of_patches:
        st.caption("**Sample:** made-up tissue of no real patient. It shows what the page does, not how good a run is.")
        return [], ("sample",)
    if state.get("sample") and samples:
        st.caption("**Sample:** images that this run was tested on; the folder in each name tells its true class.")
        return list(samples), ("sample",)
    return (files, tuple(file.file_id for file in files)) if files else (None, ())


def read_files(files: Sequence) -> list[tuple[str, bytes]]:
    """Name and bytes of what was sent, of samples of the run, or of the made-up slide where nothing is given."""
    if not files:
        return uploads.sample_uploads()
    if isinstance(files[0], Path):
        return [(f"{path.parent.name}/{path.name}", path.read_bytes()) for path in files]
    return [(file.name, file.getvalue()) for file in files]


def answer_images(loading: Future[Run], report: Report | None, files: Sequence, key: tuple) -> None:
    """Score the visitor's images, unless they are the same as at the last click, and show the answers."""
    if loading.done():
        run = loading.result()
    else:
        with st.spinner("Loading the network ..."):
            run = loading.result()
    from cancernet.web import page, screen

    state, shelf, visitor = st.session_state, open_shelf(), name_visitor()
    mpp = SCALES.get(state.get("scale"))
    answer = shelf.get(visitor, (key, mpp))
    if answer is None:
        bar = st.progress(0.0, "Reading the images")
        answer = page.Answer(*page.score_uploads(run, read_files(files), mpp=mpp, tell=bar.progress), {})
        bar.empty()
        shelf.put(visitor, (key, mpp), answer, page.count_bytes(answer))
    if mpp is not None or any("micrometres" in problem.reason for problem in answer.problems):
        st.selectbox(
            page.SCALE_LABEL,
            list(SCALES),
            index=None,
            placeholder="Choose the scale",
            key="scale",
            help="For images that do not say it themselves. It is needed to cut them into patches.",
        )
    show_problems(answer.problems, expanded=not answer.scored)
    if answer.scored:
        screen.show_answers(run, report, answer)
    else:
        st.info("No image is left to look at. Send other files, or try the sample.")


def show_problems(problems: Sequence[uploads.Problem], *, expanded: bool) -> None:
    if not problems:
        return
    label = f"{len(problems):,} file{'s' * (len(problems) > 1)} could not be used"
    with st.expander(label, icon=":material/error:", expanded=expanded or len(problems) < 4):
        st.table({"file": [plain(each.name) for each in problems], "why": [plain(each.reason) for each in problems]})


STYLE = """<style>
.block-container {max-width: 1180px; padding-top: 2.2rem; padding-bottom: 3rem}
h1 {font-size: 2rem !important; padding-bottom: 0.2rem !important}
[data-testid="stSidebar"] table {font-size: 0.8rem}
[data-testid="stSidebar"] :is(td, th) {padding: 0.25rem 0.35rem !important; border: none !important}
[data-testid="stSidebar"] td:nth-child(2) {white-space: nowrap}
.called {display: inline-block; color: white; border-radius: 0.4rem; padding: 0.1rem 0.55rem; margin-bottom: 0.5rem}
.share {display: grid; grid-template-columns: 1fr auto; font-size: 0.9rem; margin-bottom: 0.35rem}
.share > div {grid-column: 1 / 3; height: 0.4rem; border-radius: 0.2rem; background: #e6eaed; overflow: hidden}
.share > div > div {height: 100%}
</style>"""

if __name__ == "__main__":
    main()
