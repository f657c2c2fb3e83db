"""What predict_images.py says of all images together: how many were called what, the first answers, slide by slide."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cancernet.data.grid import PATCH_STEP
from cancernet.explain.outside import FURTHEST, find_outside
from cancernet.inference.prediction import DecidedPatches
from cancernet.inference.work_list import CUT, LOOSE, SLIDE, Part, printable
from cancernet.reporting import illustration, montages, printed, wording
from cancernet.run import Run, name_class

SUMMARY, FURTHEST_PICTURE = "summary.csv", "furthest.jpg"  # in the folder of the results
FIRST = 10  # images that are named with their answers
HEADER = ("slide", "class", "patches", "called", "share", "mm2", "mean_probability")


class Called(NamedTuple):
    """Patches of one slide, or all without a slide."""

    patches: int
    called: np.ndarray  # patches of each class [k]
    probability: np.ndarray  # summed, of each class [k]
    patch_mm2: float | None  # area of a patch; None where it is not known

    def join(self, more: "Called") -> "Called":
        return Called(
            self.patches + more.patches,
            self.called + more.called,
            self.probability + more.probability,
            self.patch_mm2,
        )


class Summary:
    """Grows by one part after the other; holds a number for each patch, not the patches."""

    def __init__(self, run: Run):
        self.words = [name_class(run.settings, name) for name in run.decision.classes]
        self._positive = None if run.decision.positive is None else run.decision.classes.index(run.decision.positive)
        side = run.settings.mpp and run.settings.mpp * PATCH_STEP / 1000  # of a patch on a slide, millimetres
        self._patch_mm2 = side and side**2
        self._slides: dict[str, Called] = {}
        self._first: list[list[str]] = []
        self._without_map: list[int] = []  # patches of each slide that has no map
        self._distances: list[np.ndarray] = []
        self.furthest: list[tuple[float, str, np.ndarray]] = []  # distance, name and picture of those outside

    def add(self, part: Part, decided: DecidedPatches, *, has_map: bool) -> None:
        """Take in the answers of one part."""
        scored, classes = decided.scored, len(self.words)
        called = Called(
            len(scored.files),
            np.bincount(decided.predicted, minlength=classes),
            decided.probabilities.sum(axis=0),
            None if part.kind == LOOSE else self._patch_mm2,
        )
        known = self._slides.get(part.slide)
        self._slides[part.slide] = known.join(called) if known else called
        if part.kind == SLIDE and not has_map:
            self._without_map.append(len(scored.files))
        if not has_map:
            for row in range(min(len(scored.files), FIRST - len(self._first))):
                self._first.append(self._describe_row(decided, row))
        self._distances.append(scored.distances)
        names = [
            Path(file).name + (f" at {x}, {y}" if part.kind == CUT else "")
            for file, x, y in zip(scored.files, scored.x, scored.y, strict=True)
        ]
        outside = np.flatnonzero(scored.distances > 1)
        for row in outside[np.argsort(-scored.distances[outside])][:FURTHEST]:
            self.furthest.append((float(scored.distances[row]), printable(names[row]), scored.thumbnails[row]))
        self.furthest = sorted(self.furthest, key=lambda each: -each[0])[:FURTHEST]

    def rows(self) -> list[Sequence]:
        """The table summary.csv: of two classes a row a slide, of more one a slide and class; "" has no slide."""
        classes = range(len(self.words)) if self._positive is None else [self._positive]
        rows: list[Sequence] = [HEADER]
        for slide, each in self._slides.items():
            for index in classes:
                called = int(each.called[index])
                area = "" if each.patch_mm2 is None else round(called * each.patch_mm2, 4)
                share, mean = (round(float(value) / each.patches, 4) for value in (called, each.probability[index]))
                rows.append([slide, self.words[index], each.patches, called, share, area, mean])
        return rows

    @property
    def count(self) -> int:
        """How many patches were answered."""
        return sum(each.patches for each in self._slides.values())

    def describe(self) -> str:
        """What is printed when all is done; the images outside what the run was made for come first."""
        count = self.count
        if not count:
            return "No image was answered."
        distances = np.concatenate(self._distances)
        outside, noun = find_outside(distances), "patches" if any(self._slides) else "images"
        said = [wording.outside_sentence(outside and (outside.outside, outside.images), noun)]
        if self.furthest:
            named = ", ".join(f"{name} ({distance:.1f})" for distance, name, _ in self.furthest[:3])
            said.append(f"The furthest, where 1 is the limit: {named}; see {FURTHEST_PICTURE}.")
        called = sum(each.called for each in self._slides.values())
        counts = [
            f"{called[index]:,} called {word} ({called[index] / count:.0%})" for index, word in enumerate(self.words)
        ]
        said.append(f"{count:,} {noun}: {', '.join(reversed(counts))}.")
        if self._without_map:
            slides = f"{len(self._without_map):,} slide{'s' * (len(self._without_map) > 1)}"
            said.append(f"{sum(self._without_map):,} patches of {slides} are too few or too far apart for a map.")
        if self._first:
            share = f"probability of {self.words[self._positive]}" if self._positive is not None else "probability"
            said.append(printed.table([["image", "called", share], *self._first]))
        return "\n".join(map(str, filter(None, said)))

    def draw_furthest(self, folder: Path) -> None:
        """Draw those outside into the folder of the results, if there are any."""
        if self.furthest:
            captions = [f"{name}\ndistance {distance:.1f}" for distance, name, _ in self.furthest]
            figure = montages.plot_furthest(images=[image for *_, image in self.furthest], captions=captions)
            illustration.save_picture(figure, folder / FURTHEST_PICTURE)

    def _describe_row(self, decided: DecidedPatches, row: int) -> list[str]:
        index = decided.predicted[row]
        shown = index if self._positive is None else self._positive
        name = printable(Path(decided.scored.files[row]).name)
        return [name, self.words[index], f"{decided.probabilities[row, shown]:.3f}"]
