"""The page's work without the page: what is done under the lock that all visitors share, and what is kept of them."""

import threading

import numpy as np
import pytest

from cancernet.run import load_run
from cancernet.using import page, prediction, uploads


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def test_files_are_decoded_outside_the_lock_and_scored_under_it(run, monkeypatch):
    lock, seen = threading.Lock(), []
    read, score = uploads.read_uploads, prediction.score_patches

    def look(name, function):
        def call(*arguments, **options):
            seen.append((name, lock.locked()))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(uploads, "read_uploads", look("read", read))
    monkeypatch.setattr(prediction, "score_patches", look("score", score))
    page.score_uploads(run, uploads.sample_uploads()[:3], lock=lock)
    assert seen == [("read", False), ("score", True)]
    assert not lock.locked()


def test_few_pictures_with_grad_cam_are_kept(run, monkeypatch):
    monkeypatch.setattr(page, "MOST_PICTURES", 3)
    (scored,), _ = page.score_uploads(run, uploads.sample_uploads()[:5])
    decided = prediction.decide_patches(run, scored, neighbours=False)
    patches, made = [page.Shown(decided, row) for row in range(5)], {}
    first = page.explain_patches(run, patches[:2], 0, made)
    page.explain_patches(run, patches[2:], 0, made)
    assert [row for _, row, _ in made] == [2, 3, 4]  # the oldest went
    again = page.explain_patches(run, patches[:2], 0, made)
    assert all(map(np.array_equal, first, again))


def test_the_bytes_of_an_answer_are_those_of_its_images(run):
    scored, problems = page.score_uploads(run, uploads.sample_uploads()[:2])
    pictures = page.MOST_PICTURES * 240 * (240 + 12 + 240) * 3
    thumbnails = sum(each.nbytes for each in scored[0].thumbnails)
    assert page.count_bytes(page.Answer(scored, problems, {})) == 2 * 50 * 50 * 3 + thumbnails + pictures
