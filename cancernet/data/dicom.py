"""Decode DICOM images, such as mammograms, with pydicom. Nothing but the pixels and the patient is read."""

import io
from typing import IO, TYPE_CHECKING

import numpy as np

from cancernet import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

ENDING = ".dcm"
MAGIC = slice(128, 132)  # where a file has the letters DICM


def read_header(file: IO[bytes], *, stop_before_pixels: bool = True) -> "Dataset":
    """Read the tags of a DICOM file; InputError if it is none, or pydicom is not installed."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError('is a DICOM image. To read it: pip install "cancernet[dicom]"') from error
    try:
        return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
    except (pydicom.errors.InvalidDicomError, ValueError, LookupError, OSError, TypeError) as error:
        raise InputError("cannot be decoded: not a DICOM image, damaged or cut off") from error


def decode_dicom(data: bytes) -> np.ndarray:
    """Decode a DICOM file of one frame: uint8 [height, width, 1 or 3], grey or BGR, as a viewer shows it.

    Grey values are rescaled, and then shown through the file's first VOI table or window (DICOM PS3.3 C.11.2); without
    one, the whole range of its stored bits is. MONOCHROME1 is inverted. Raises InputError if the file is damaged or of
    a kind that is not supported.
    """
    dataset = read_header(io.BytesIO(data), stop_before_pixels=False)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise InputError(f"is a DICOM file of {frames} frames. Save the frame to use as a file of its own.")
    from pydicom.pixels import apply_color_lut

    kind, packed = str(dataset.get("PhotometricInterpretation", "")), dataset.file_meta.TransferSyntaxUID.name
    try:
        values = dataset.pixel_array  # YBR becomes RGB
        if kind in ("MONOCHROME1", "MONOCHROME2"):
            shown = _show(values, dataset)
            return np.rint(255 * (1 - shown if kind == "MONOCHROME1" else shown)).astype(np.uint8)[..., None]
        white = 2**dataset.BitsStored - 1
        if kind == "PALETTE COLOR":
            bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
            values, white = apply_color_lut(values, dataset), 2**bits - 1
        elif not kind.startswith(("RGB", "YBR")):
            raise InputError(f"is a DICOM image of the kind {kind or 'unknown'}, which is not supported.")
        return np.rint(values[..., 2::-1] * (255 / white)).astype(np.uint8)
    except InputError:
        raise
    except (RuntimeError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, OSError) as error:
        raise InputError(f"cannot be decoded: DICOM as {packed}, {kind} ({error})".replace("\n", " ")) from error


def _show(values: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Return grey values as shares of white, 0 to 1."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    is_signed, steps = bool(dataset.get("PixelRepresentation")), 2**dataset.BitsStored
    stored = np.array([0.0, steps - 1]) - steps / 2 * is_signed  # the smallest and the largest value
    values = apply_modality_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(apply_voi(values, dataset) / (2**bits - 1), 0, 1)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        low, high = sorted(stored * slope + intercept)
        return np.clip((values - low) / (high - low), 0, 1)
    centre, width = (np.ravel(dataset[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
    centre, width, function = float(centre), float(width), str(dataset.get("VOILUTFunction", "LINEAR")).upper()
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-9)
    return np.clip((values - centre) / width + 0.5, 0, 1)
