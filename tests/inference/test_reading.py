"""A process that only reads needs little memory."""

import errno
from types import SimpleNamespace

import pytest
from conftest import write_image

from cancernet import InputError, StorageError
from cancernet.data import images
from cancernet.inference.reading import explain, open_item
from cancernet.inference.work_list import SINGLE, WorkItem


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_failed_read_ends_a_prediction_and_a_missing_file_is_rejected(tmp_path, monkeypatch, number):
    files = [str(write_image(tmp_path / name)) for name in ("a.png", "b.png")]
    read_file = images.read_file

    def fail(path, **options):
        if path == files[0]:
            raise OSError(number, "no luck", path)
        return read_file(path, **options)

    monkeypatch.setattr(images, "read_file", fail)
    settings = SimpleNamespace(patch_pixels=50, experiment=SimpleNamespace(channels=3))
    with open_item(settings, WorkItem(SINGLE, "", "", files), mpp=None) as opened:
        if number == errno.ENOENT:
            assert [tile.file for tile in opened.tiles] == files[1:]
            assert opened.rejected == [(files[0], "no luck")]
        else:
            with pytest.raises(StorageError, match="a.png: no luck"):
                list(opened.tiles)


def test_a_failed_read_of_a_slide_ends_a_prediction():
    try:
        try:
            raise OSError(errno.EIO, "no luck")
        except OSError as error:
            raise InputError("slide.svs: the chunk cannot be read.") from error
    except InputError as error:
        with pytest.raises(StorageError, match="slide.svs: the chunk cannot be read"):
            explain(["slide.svs"], error)
