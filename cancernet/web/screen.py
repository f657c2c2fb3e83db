"""What the page shows of images that were answered, with Streamlit. It needs Keras, so app.py imports it late."""

from pathlib import Path

import numpy as np
import streamlit as st

from cancernet.evaluation.decision import Decision, expected_rates
from cancernet.explain.outside import find_outside
from cancernet.inference import prediction
from cancernet.inference.prediction import DecidedPatches, ScoredPatches
from cancernet.reporting import wording
from cancernet.reporting.content import Report
from cancernet.run import REPORT_PAGE, Run, name_class
from cancernet.web import page, run_summary, slide_map
from cancernet.web.run_summary import plain

CARDS_A_PAGE, CARDS_A_ROW = 6, 3
FURTHEST_WIDTH = 108  # pixels on the screen: three beside each other on a phone
OPERATING_POINTS = {"balanced": "where sensitivity and specificity together should be highest"}


def show_answers(run: Run, report: Report | None, answer: page.Answer) -> None:
    """Show everything that follows from the scores of a visitor's images; the threshold is asked for here."""
    outside = find_outside(np.concatenate([each.distances for each in answer.scored]))
    said = wording.outside_sentence(outside and (outside.outside, outside.images), run_summary.noun(run.settings))
    if outside is None:
        st.caption(plain(said))
    elif said:
        st.warning(plain(said), icon=":material/warning:")
        st.caption("The furthest, with their distance; 1 is the limit.")
        with st.container(horizontal=True):
            for picture, name in page.show_furthest(answer.scored, outside):
                st.image(picture, caption=plain(name), width=FURTHEST_WIDTH, alt=name)
    threshold, neighbours = ask_how_to_decide(run, report, answer.scored)
    decided = [
        prediction.decide_patches(run, each, neighbours=neighbours, threshold=threshold) for each in answer.scored
    ]
    show_summary(run, decided)
    slides = [each for each in decided if page.has_map(run, each)]
    slide, clicked = show_map(run, slides)
    show_patches(run, decided, clicked, answer)
    offer_downloads(run, decided, slides, slide)


def ask_how_to_decide(run: Run, report: Report | None, scored: list[ScoredPatches]) -> tuple[float | None, bool]:
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
        left.caption("Each image is given the most probable of the classes.")
        return None, neighbours
    threshold = ask_for_threshold(run, left, decision, neighbours)
    with right:
        show_rates(run, report, decision, threshold)
    if neighbours and alone:
        own = prediction.choose_decision(run, neighbours=False).threshold
        at = f", from {own:.1%}" if threshold == decision.threshold else ""
        count = run_summary.count_images(run.settings, sum(len(each.files) for each in alone))
        right.caption(f"For smoothed slides. Judged one by one{at}: {count}.")
    return (None if threshold == decision.threshold else threshold), neighbours


def ask_for_threshold(run: Run, place, decision: Decision, neighbours: bool) -> float:
    """Show a slider with the thresholds whose expected rates are known exactly, and a button for each of a few."""
    key = f"threshold {run.folder} {neighbours}"
    called = (
        f"{run_summary.noun(run.settings).capitalize()} are called {plain(name_class(run.settings, decision.positive))}"
    )
    threshold = place.select_slider(
        f"{called} from a probability of",
        decision.curve["threshold"],
        value=decision.threshold,
        format_func=lambda value: f"{value:.1%}",
        key=key,
    )
    with place.container(horizontal=True, gap="small"):
        for words, point in run_summary.choose_points(decision).items():
            st.button(
                f"{words}, {point:.1%}",
                type="primary" if point == threshold else "secondary",
                on_click=lambda point=point: st.session_state.update({key: point}),
            )
    if threshold == decision.threshold:
        point = OPERATING_POINTS.get(decision.operating_point, decision.operating_point)
        place.caption(f"The run's own threshold, fitted on validation: {plain(point)}.")
    return threshold


def show_rates(run: Run, report: Report | None, decision: Decision, threshold: float) -> None:
    """Tested sensitivity and specificity where the report has them, and in small type what validation expects."""
    alone = decision is not run.decision
    tested = report and run_summary.find_tested_rates(report, decision, threshold, alone=alone)
    if tested:
        where = "tested" if report["evaluated_on"] == "testing" else report["evaluated_on"]
        with st.container(horizontal=True):
            for name, metric in tested.items():
                value, interval = wording.share(metric["value"]), plain(wording.interval(metric))
                st.metric(f"{name.capitalize()}, {where}", value, help=interval or None)
    elif report:
        st.caption("Nothing was tested at this threshold, but at those of the buttons.")
    expected = " and ".join(f"{name} {value:.1%}" for name, value in expected_rates(decision, threshold).items())
    st.caption(f"Validation, {run_summary.describe_fit(decision)}, leads to expect {expected}.")


def show_summary(run: Run, decided: list[DecidedPatches]) -> None:
    """How many images there are, and how many of each class, in words."""
    predicted = np.concatenate([each.predicted for each in decided])
    number = run_summary.count_images(run.settings, len(predicted))
    if len(predicted) == 1:
        st.markdown(f"**{number}** called **{label(run, predicted[0])}**")
        return
    counts = np.bincount(predicted, minlength=len(run.decision.classes))
    parts = [
        f"**{count:,}** called {label(run, index)} ({_share(run, count, len(predicted))})"
        for index, count in reversed(list(enumerate(counts)))
    ]
    st.markdown(f"**{number}**: {', '.join(parts)}")


def show_map(run: Run, slides: list[DecidedPatches]) -> tuple[DecidedPatches | None, page.Shown | None]:
    """Show the map of one slide; returns the slide, and the patch that was clicked."""
    if not slides:
        return None, None
    names = [each.scored.slide for each in slides]
    st.subheader("The slide" if len(names) > 1 else f"The slide {plain(names[0])}")
    classes, positive = run.decision.classes, run.decision.positive
    layers, which, what = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = which.selectbox("Slide", names, key="slide") if len(names) > 1 else names[0]
    over = layers.segmented_control(
        "Over the tissue", slide_map.OVER_TISSUE, default=slide_map.OVER_TISSUE[0], required=True, key="layer"
    )
    shown = positive
    if positive is None:
        shown = what.selectbox("Class", classes, format_func=lambda one: name_class(run.settings, one), key="class")
    slide = slides[names.index(name)]
    event = st.vega_lite_chart(
        spec=page.draw_map(run, slide, classes.index(shown), over),
        key=f"map {name}",
        on_select="rerun",
        selection_mode="clicked",
        alt=f"Map of slide {name}",
    )
    st.caption("Turn the wheel to zoom, drag to move, double-click to see all; click a patch to look at it below.")
    chosen = event.selection.get("clicked") or []
    row = int(chosen[0]["patch"]) if chosen else None
    return slide, page.Shown(slide, row) if row is not None and row < len(slide.predicted) else None


def show_patches(run: Run, decided: list[DecidedPatches], clicked: page.Shown | None, answer: page.Answer) -> None:
    """Show the patch that was clicked, or a page of all, each with Grad-CAM, its probabilities and its decision."""
    count = sum(len(each.predicted) for each in decided)
    st.subheader(f"The {run_summary.noun(run.settings, count)}")
    if clicked:
        st.markdown("The patch that you clicked on the map. Click beside the tissue to see all.")
        patches = [clicked]
    else:
        order = st.selectbox("Order", page.ORDERS, key="order", width=320) if count > 1 else page.ORDERS[0]
        patches = page.list_patches(run, decided, order)
    pages = -(-len(patches) // CARDS_A_PAGE)
    number = st.pagination(pages, key=f"page of {pages}") if pages > 1 else 1
    shown = patches[(number - 1) * CARDS_A_PAGE : number * CARDS_A_PAGE]
    pictures = page.explain_patches(run, shown, answer.pictures)
    if page.has_maps(run):
        st.caption(page.EXPLAINED)
    for start in range(0, len(shown), CARDS_A_ROW):
        for place, patch, picture in zip(st.columns(CARDS_A_ROW), shown[start:], pictures[start:], strict=False):
            with place.container(border=True):
                show_patch(run, patch, picture)


def show_patch(run: Run, patch: page.Shown, picture: np.ndarray) -> None:
    """A card: the picture, what the patch was called, its probabilities and its file."""
    st.image(picture, width="stretch", alt="The image, and beside it what spoke for its class")
    st.html(page.describe_answer(run, patch))
    st.caption(plain(page.name_patch(patch.decided.scored, patch.row)))


def offer_downloads(
    run: Run, decided: list[DecidedPatches], slides: list[DecidedPatches], slide: DecidedPatches | None
) -> None:
    """Buttons for what a visitor may keep; each is made when it is asked for."""
    st.subheader("Results to keep")
    decided, slides = ([page.without_images(each) for each in some] for some in (decided, slides))
    slide = slide and page.without_images(slide)
    given = {"on_click": "ignore", "width": "stretch"}
    with st.container(horizontal=True):
        st.download_button(
            f"All {run_summary.noun(run.settings)} as CSV",
            lambda: page.predictions_csv(run, decided),
            "predictions.csv",
            "text/csv",
            icon=":material/table:",
            **given,
        )
        if slide and run.decision.positive is not None:
            name = Path(slide.scored.slide).stem
            st.download_button(
                f"Picture of {plain(Path(slide.scored.slide).name)} with outline",
                lambda: page.draw_picture(run, slide),
                f"{name}.jpg",
                "image/jpeg",
                icon=":material/image:",
                **given,
            )
        if slides:
            st.download_button(
                f"Regions of {'all slides' if len(slides) > 1 else 'the slide'} as GeoJSON",
                lambda: page.pack_regions(run, slides),
                "regions.zip",
                "application/zip",
                icon=":material/polyline:",
                help="Outlines for QuPath, in pixels of the slide, a file for each slide.",
                **given,
            )
        report = run.folder / REPORT_PAGE
        if report.is_file():
            st.download_button(
                "The run's report",
                report.read_bytes,
                f"{run.folder.resolve().name} report.html",
                "text/html",
                icon=":material/description:",
                **given,
            )


def label(run: Run, index: int) -> str:
    """A class by its index, as people call it."""
    return plain(name_class(run.settings, run.decision.classes[index]))


def _share(run: Run, count: int, of: int) -> str:
    """`29%`, and of patches of a known scale their area too."""
    area = f", {count * page.patch_area(run):,.1f} mm²" if run.settings.mpp else ""
    return f"{count / of:.0%}{area}"
