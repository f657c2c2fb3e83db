"""The answers to the visitor's images, drawn with Streamlit. It imports Keras, so app.py imports it late."""

from functools import partial
from pathlib import Path

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from cancernet.evaluation.decision import Decision, expected_rates
from cancernet.explain.distances import find_outliers
from cancernet.inference import prediction
from cancernet.inference.prediction import ItemPredictions, ItemScores
from cancernet.reporting import illustration, wording
from cancernet.reporting.schema import Report
from cancernet.run import REPORT_PAGE, Run, name_class
from cancernet.web import page, run_summary
from cancernet.web.run_summary import escape

CARDS_A_PAGE, CARDS_A_ROW = 6, 3
OVERLAYS = ("Probability", "None")
DISTANT_WIDTH = 108  # pixels on the screen: three next to each other on a phone


def show_answers(run: Run, report: Report | None, answer: page.Answer) -> None:
    """Show all that follows from the scores, at the threshold that the visitor chooses here."""
    show_distant(run, answer)
    threshold, smooth = choose_decision(run, report, answer.scores)
    predictions = [prediction.decide_item(run, each, neighbours=smooth, threshold=threshold) for each in answer.scores]
    show_counts(run, predictions)
    slide, clicked = show_map(run, page.find_slides(predictions), answer)
    show_patches(run, predictions, clicked, answer)
    offer_downloads(run, predictions, slide)


def show_distant(run: Run, answer: page.Answer) -> None:
    """Warn of images that are out of distribution, and show the most distant ones."""
    outside = find_outliers(np.concatenate([each.distances for each in answer.scores]))
    counts = (outside.outside, outside.images) if outside else None
    warning = escape(wording.describe_out_of_distribution(counts, run_summary.noun(run.settings, 1)))
    if outside is None:
        st.caption(warning)
    elif warning:
        st.warning(warning, icon=":material/warning:")
        st.caption("The most distant images and their distances; 1 is the limit.")
        with st.container(horizontal=True):
            for picture, name in page.show_distant(answer.scores, outside):
                st.image(picture, caption=escape(name), width=DISTANT_WIDTH, alt=name)


def choose_decision(run: Run, report: Report | None, scores: list[ItemScores]) -> tuple[float | None, bool]:
    """Let the visitor choose; returns the threshold, None for the run's, and whether slides are smoothed."""
    left, right = st.columns([5, 4], vertical_alignment="center")
    single = [each for each in scores if not prediction.can_be_smoothed(run, each)]
    smooth = len(single) < len(scores) and left.toggle(
        "Smooth over neighbouring patches",
        value=True,
        key="smooth",
        help="Averages the scores of each patch and its neighbours, as fitted in training. Patches without a "
        "position, and slides with many gaps, are not smoothed.",
    )
    decision = prediction.choose_decision(run, neighbours=smooth)
    if decision.threshold is None or decision.positive is None or decision.curve is None:
        left.caption("Each image is assigned its most probable class.")
        return None, smooth
    label = escape(name_class(run.settings, decision.positive))
    key = f"threshold {run.folder} {smooth}"
    threshold = left.select_slider(
        f"Classify {run_summary.noun(run.settings)} as {label} from a probability of",
        decision.curve.threshold,
        value=decision.threshold,
        format_func=lambda value: f"{value:.1%}",
        key=key,
    )
    show_buttons(left, decision, threshold, key)
    with right:
        show_rates(run, report, decision, threshold)
    default = threshold == decision.threshold
    if smooth and single:
        own = f", from a probability of {prediction.choose_decision(run, neighbours=False).threshold:.1%}"
        count = wording.plural(sum(len(each.patches) for each in single), run_summary.noun(run.settings, 1))
        right.caption(f"These rates apply to smoothed slides. Not smoothed{own * default}: {count}.")
    return (None if default else threshold), smooth


def show_buttons(place: DeltaGenerator, decision: Decision, threshold: float, key: str) -> None:
    """Show a button for each threshold of the report; `key` is that of the slider."""
    with place.container(horizontal=True, gap="small"):
        for label, value in run_summary.list_thresholds(decision).items():
            st.button(
                f"{label}, {value:.1%}",
                type="primary" if value == threshold else "secondary",
                on_click=lambda value=value: st.session_state.update({key: value}),
            )
    if threshold == decision.threshold:
        aim = wording.OPERATING_POINTS.get(decision.operating_point, decision.operating_point)
        place.caption(f"The default was chosen on {wording.name_fit(decision.fitted_on)}: {escape(aim)}.")


def show_rates(run: Run, report: Report | None, decision: Decision, threshold: float) -> None:
    """Show sensitivity and specificity: measured, where the report has them, and as expected from validation."""
    if report:
        unsmoothed = decision is not run.decision
        rates = run_summary.find_test_rates(report, decision, threshold, unsmoothed=unsmoothed)
        where = "test set" if report.evaluated_on == "testing" else report.evaluated_on
        if run.settings.mpp is not None:
            where += ", smoothed" if report.smoothed_images and not unsmoothed else ", single patches"
        with st.container(horizontal=True):
            for name, metric in rates.items():
                interval = escape(wording.interval(metric))
                st.metric(f"{name.capitalize()} ({where})", wording.share(metric.value), help=interval or None)
        if not rates:
            st.caption("The report has test results for the thresholds of the buttons only.")
    expected = ", ".join(f"{name} {value:.1%}" for name, value in vars(expected_rates(decision, threshold)).items())
    fit = f"{wording.name_fit(decision.fitted_on)} ({wording.describe_fit(decision.fitted_on)})"
    alone = decision.neighbour_sigma == 0 and run.settings.mpp is not None
    st.caption(f"Expected from {fit}: {expected}.{' These are rates of single patches.' * alone}")


def show_counts(run: Run, predictions: list[ItemPredictions]) -> None:
    """Say how many images there are, and how many of each class."""
    labels, predicted = page.list_labels(run), np.concatenate([each.predicted for each in predictions])
    number = wording.plural(len(predicted), run_summary.noun(run.settings, 1))
    if len(predicted) == 1:
        (patch,) = page.list_patches(run, predictions, page.ORDERS[2])
        answer = "" if patch.is_uncertain else "classified as "
        st.markdown(f"**{number}**, {answer}**{escape(page.name_answer(labels, patch))}**")
        return

    counts = np.bincount(predicted, minlength=len(labels)).tolist()
    shares = [f"{count / len(predicted):.0%}" for count in counts]
    if run.settings.mpp is not None:
        areas = [count * (run.settings.patch_pixels * run.settings.mpp / 1000) ** 2 for count in counts]
        shares = [f"{each}, {area:,.{3 if 0 < area < 1 else 1}f} mm²" for each, area in zip(shares, areas, strict=True)]
    parts = [
        f"**{count:,}** {escape(label)} ({each})" for count, label, each in zip(counts, labels, shares, strict=True)
    ]
    st.markdown(f"**{number}**, classified as: {', '.join(reversed(parts))}")
    uncertain = [each.uncertain.sum() for each in predictions if each.uncertain is not None]
    if uncertain:
        st.markdown(f"Of these, **{sum(uncertain):,}** are uncertain: refer them to a person.")


def show_map(
    run: Run, slides: list[ItemPredictions], answer: page.Answer
) -> tuple[ItemPredictions | None, page.Shown | None]:
    """Show the map of one slide; returns the slide and the patch that was clicked."""
    if not slides:
        return None, None
    names = [each.scores.slide for each in slides]
    st.subheader("Slide" if len(names) > 1 else f"Slide {escape(names[0])}")
    classes, positive = run.classes, run.positive
    left, middle, right = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = middle.selectbox("Slide", names, key="slide") if len(names) > 1 else names[0]
    overlay = left.segmented_control("Overlay", OVERLAYS, default=OVERLAYS[0], required=True, key="overlay")
    shown = positive
    if shown is None:
        shown = right.selectbox("Class", classes, format_func=lambda each: name_class(run.settings, each), key="class")
    slide, regions = slides[names.index(name)], answer.annotations.get(name, [])
    event = st.vega_lite_chart(
        spec=page.draw_map(run, slide, classes.index(shown), show_probability=overlay == OVERLAYS[0], regions=regions),
        key=f"map {name}",
        on_select="rerun",
        selection_mode="clicked",
        alt=f"Map of slide {name}",
    )
    st.caption(
        "Mouse: scroll to zoom, drag to pan, double-click to reset. Click or tap a patch to see it below. "
        "The outline is dashed where the probability is less than halfway from the threshold to 100%."
        + " Blue lines surround uncertain patches."
        * (slide.uncertain is not None)
    )
    if regions:
        table = page.tabulate_agreement(run, slide, regions)
        st.table({escape(heading): [escape(cell) for cell in cells] for heading, cells in table.items()})
        st.caption("Of the patches of which annotations of a class cover at least half.")
    chosen = event.selection.get("clicked") or []
    row = int(chosen[0]["patch"]) if chosen else len(slide.predicted)
    return slide, page.Shown(slide, row) if row < len(slide.predicted) else None


def show_patches(run: Run, predictions: list[ItemPredictions], clicked: page.Shown | None, answer: page.Answer) -> None:
    """Show the patch that was clicked, or one page of all patches, as cards."""
    count = sum(len(each.predicted) for each in predictions)
    st.subheader(run_summary.noun(run.settings, count).capitalize())
    if clicked:
        st.markdown("The patch you clicked on the map. Click outside the tissue to see all patches.")
        patches = [clicked]
    else:
        order = st.selectbox("Order", page.ORDERS, key="order", width=320) if count > 1 else page.ORDERS[0]
        patches = page.list_patches(run, predictions, order)
    pages = -(-len(patches) // CARDS_A_PAGE)
    number = st.pagination(pages, key=f"page of {pages}") if pages > 1 else 1
    shown = patches[(number - 1) * CARDS_A_PAGE : number * CARDS_A_PAGE]
    pictures = page.explain_patches(run, shown, answer.pictures)
    if illustration.has_grad_cam(run):
        st.caption(
            "Left: the image. Right: what supports its predicted class (Grad-CAM), from nothing (no colour) to yellow."
        )
    for start in range(0, len(shown), CARDS_A_ROW):
        for place, patch, picture in zip(st.columns(CARDS_A_ROW), shown[start:], pictures[start:], strict=False):
            with place.container(border=True):
                st.image(picture, width="stretch", alt="The image and its Grad-CAM map")
                st.html(page.describe_patch(run, patch))
                st.caption(escape(page.name_patch(patch.predictions.scores, patch.row)))


def offer_downloads(run: Run, predictions: list[ItemPredictions], slide: ItemPredictions | None) -> None:
    """Show the download buttons; a file is made when its button is clicked. `slide` is the one on the map."""
    st.subheader("Download the results")
    predictions = [page.without_images(each) for each in predictions]
    slides, report = page.find_slides(predictions), run.folder / REPORT_PAGE
    offer = partial(st.download_button, on_click="ignore", width="stretch")
    with st.container(horizontal=True):
        table, label = partial(page.predictions_csv, run, predictions), f"All {run_summary.noun(run.settings)} (CSV)"
        offer(label, table, "predictions.csv", "text/csv", icon=":material/table:")
        if slide and run.positive is not None:
            picture, name = partial(page.draw_picture, run, page.without_images(slide)), Path(slide.scores.slide)
            label = f"Map of {escape(name.name)} (JPEG)"
            offer(label, picture, f"{name.stem}.jpg", "image/jpeg", icon=":material/image:")
        if slides:
            regions, use = (
                partial(page.pack_regions, run, slides),
                "Outlines for QuPath, in slide pixels; one file per slide.",
            )
            label = f"Regions of {'all slides' if len(slides) > 1 else 'the slide'} (GeoJSON)"
            offer(label, regions, "regions.zip", "application/zip", icon=":material/polyline:", help=use)
        if report.is_file():
            file = f"{run.folder.resolve().name} report.html"
            offer("Report of the run", report.read_bytes, file, "text/html", icon=":material/description:")
