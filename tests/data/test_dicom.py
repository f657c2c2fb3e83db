"""DICOM images are shown as a viewer shows them, or refused by name."""

import builtins
import io

import numpy as np
import pytest

from cancernet import InputError
from cancernet.data.images import decode_image, read_size

pydicom = pytest.importorskip("pydicom")

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def write_dicom(path=None, *, pixels=RAMP, bits=12, kind="MONOCHROME2", packed=None, encoded=None, **tags):
    """Write a DICOM file; return its bytes. `encoded` are the pixels as the transfer syntax `packed` has them."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"  # mammography
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID, dataset.PatientName = tags.pop("PatientID", "P1"), "Secret^Name"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if kind.startswith(("RGB", "YBR", "MONO")) else (8, 8)
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = kind, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if encoded:
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = packed, pydicom.encaps.encapsulate([encoded])
    elif packed:
        dataset.compress(packed)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return file.getvalue()


def shown(**options):
    return decode_image(write_dicom(**options), 1)[..., 0]


@pytest.mark.parametrize("packed", [None, "1.2.840.10008.1.2.5"], ids=["plain", "RLE"])
@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_the_whole_range_of_the_stored_bits_is_shown(bits, dtype, packed):
    pixels = (RAMP.astype(int) * (2**bits - 1) // 4095).astype(dtype)
    expected = np.rint(pixels / (2**bits - 1) * 255)
    np.testing.assert_array_equal(shown(pixels=pixels, bits=bits, packed=packed), expected)
    np.testing.assert_array_equal(shown(pixels=pixels, bits=bits, kind="MONOCHROME1"), np.rint(255 - expected))


def test_signed_values_are_rescaled():
    pixels = RAMP.astype(np.int16) - 2048
    expected = np.rint(RAMP / 4095 * 255)
    np.testing.assert_array_equal(shown(pixels=pixels, RescaleSlope=2, RescaleIntercept=-1000), expected)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_first_window_is_shown(function):
    tags = {"WindowCenter": [1000, 5], "WindowWidth": [500, 9], "VOILUTFunction": function, "RescaleSlope": 0.5}
    values = RAMP * 0.5  # the formulas of DICOM PS3.3 C.11.2.1
    expected = {
        "LINEAR": np.clip((values - 999.5) / 499 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((values - 1000) / 500 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (values - 1000) / 500)),
    }[function]
    np.testing.assert_array_equal(shown(RescaleIntercept=0, **tags), np.rint(255 * expected))


def test_a_voi_table_is_applied():
    table = pydicom.Dataset()
    values = np.arange(4095, -1, -1).astype(np.uint8)
    table.add_new("LUTDescriptor", "US", [4096, 0, 8])
    table.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    expected = values[RAMP]
    np.testing.assert_array_equal(shown(VOILUTSequence=[table], WindowCenter=5, WindowWidth=2), expected)


def test_colours():
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = 200, 50
    assert read_size(write_dicom(pixels=rgb, bits=8, kind="RGB")) == (6, 4)
    np.testing.assert_array_equal(decode_image(write_dicom(pixels=rgb, bits=8, kind="RGB"), 3), rgb)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    assert np.abs(decode_image(write_dicom(pixels=ybr, bits=8, kind="YBR_FULL"), 3).astype(int) - rgb).max() <= 2


def test_compressed_pixels_are_those_that_were_compressed():
    codecs = pytest.importorskip("imagecodecs")
    pytest.importorskip("gdcm")
    grey8 = np.add.outer(np.arange(16) * 6, np.arange(24) * 5).astype(np.uint8)
    grey12 = grey8.astype(np.uint16) * 16
    lossless = {
        pydicom.uid.JPEGLosslessSV1: codecs.ljpeg_encode(grey12, bitspersample=12),
        pydicom.uid.JPEGLSLossless: codecs.jpegls_encode(grey12),
        pydicom.uid.JPEG2000Lossless: codecs.jpeg2k_encode(
            grey12, codecformat="j2k", reversible=True, bitspersample=12
        ),
    }
    for syntax, encoded in lossless.items():
        found = shown(pixels=grey12, packed=syntax, encoded=encoded)
        np.testing.assert_array_equal(found, np.rint(grey12 / 4095 * 255), err_msg=syntax.name)
    jpeg = {"bits": 8, "packed": pydicom.uid.JPEGBaseline8Bit}
    found = shown(pixels=grey8, encoded=codecs.jpeg8_encode(grey8, level=95), **jpeg)
    assert np.abs(found.astype(int) - grey8).max() <= 2
    rgb = np.stack([grey8, 255 - grey8, grey8 // 2], axis=-1)
    data = write_dicom(pixels=rgb, encoded=codecs.jpeg8_encode(rgb, level=95), kind="YBR_FULL_422", **jpeg)
    assert np.abs(decode_image(data, 3).astype(int) - rgb).mean() <= 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"NumberOfFrames": 3}, "is a DICOM file of 3 frames. Save the frame to use as a file of its own."),
        ({"kind": "MONOCHROME9"}, "cannot be decoded: DICOM as Explicit VR Little Endian, MONOCHROME9"),
        ({"PixelData": b"short"}, "cannot be decoded: DICOM as Explicit VR Little Endian, MONOCHROME2"),
    ],
)
def test_what_cannot_be_read_is_named(options, reason):
    with pytest.raises(InputError) as caught:
        decode_image(write_dicom(**options), 3)
    assert str(caught.value).startswith(reason)


def test_without_pydicom_the_extra_is_named(monkeypatch):
    data, imported = write_dicom(), builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "pydicom":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r'is a DICOM image. To read it: pip install "cancernet\[dicom\]"'):
        decode_image(data, 3)
