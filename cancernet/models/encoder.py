"""A vision transformer of KerasHub as a feature extractor: a preset from Hugging Face, from Kaggle or in a folder."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import layers

from cancernet import InputError

if TYPE_CHECKING:
    from keras_hub.layers import ImageConverter

_INTERPOLATIONS = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def build_encoder(preset: str, image_size: int) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3], 0 to 255, to features [n, 2 * width].

    It resizes them to the encoder's own size and normalises them in Keras' own layers. The features are the class token
    and the mean of the patch tokens, as recommended for Virchow (Vorontsov et al. 2024), without register tokens. The
    preset is `hf://owner/name`, `kaggle://...`, a name that KerasHub knows, or a folder; InputError if it cannot be
    loaded or is not a vision transformer with its preprocessing.
    """
    import keras_hub

    try:
        folder = _download(preset)
        with _rename_tensors(folder) as readable:
            backbone = keras_hub.models.Backbone.from_preset(readable or preset)
        converter = _read_preprocessor(folder) if readable else keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:  # hubs, their network and files from elsewhere raise many kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"KerasHub cannot load the encoder {preset}: {reason}") from error
    if len(backbone.output_shape) != 3 or not hasattr(backbone, "patch_size"):
        raise InputError(
            f"{preset} is a {type(backbone).__name__}, not a vision transformer. Choose one, such as DINOv2."
        )
    side = backbone.image_shape[0]
    image = keras.Input((image_size, image_size, 3), name="image")
    pixels = image
    if side != image_size:
        how = {"interpolation": converter.interpolation, "antialias": converter.antialias}
        pixels = layers.Resizing(side, side, name="resize", **how)(pixels)
    scale = 1.0 if converter.scale is None else converter.scale
    pixels = layers.Rescaling(scale, 0.0 if converter.offset is None else converter.offset, name="preprocess")(pixels)
    tokens = backbone({next(iter(backbone.input)): pixels} if isinstance(backbone.input, dict) else pixels)
    patch = backbone.patch_size if isinstance(backbone.patch_size, int) else backbone.patch_size[0]
    patches = (side // patch) ** 2
    of_patches = layers.Cropping1D((tokens.shape[1] - patches, 0))(tokens)
    features = layers.GlobalAveragePooling1D(name="patches")(of_patches)
    if tokens.shape[1] > patches:
        class_token = layers.Flatten(name="class_token")(layers.Cropping1D((0, tokens.shape[1] - 1))(tokens))
        features = layers.Concatenate(name="features")([class_token, features])
    return keras.Model(image, features, name="extractor")


def _download(preset: str) -> Path:
    """Return the folder of a preset; one on Hugging Face is downloaded into the cache of `huggingface_hub`."""
    if not preset.startswith("hf://"):
        return Path(preset)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(preset.removeprefix("hf://"), allow_patterns=["*.json", "*.safetensors", "*.h5"]))


@contextlib.contextmanager
def _rename_tensors(folder: Path) -> Iterator[str | None]:
    """Yield a folder that KerasHub reads, of a model in the format of `transformers`; None for any other.

    KerasHub 0.32 expects the names of a ViT inside a classifier; published encoders (`ViTModel`) have none around them.
    """
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    names, files = set(), sorted(folder.glob("*.safetensors"))
    if kind == "vit":
        import safetensors.numpy as tensors
        from safetensors import safe_open

        for file in files:
            with safe_open(file, framework="np") as opened:
                names |= set(opened.keys())
    if not names or any(name.startswith("vit.") for name in names):
        yield str(folder) if kind else None
        return
    with tempfile.TemporaryDirectory() as renamed:
        shutil.copy(config, renamed)
        whole = {f"vit.{name}": array for file in files for name, array in tensors.load_file(file).items()}
        tensors.save_file(whole, Path(renamed) / "model.safetensors")
        yield renamed


def _read_preprocessor(folder: Path) -> "ImageConverter":
    """Read how a model in the format of `transformers` scales pixels: (pixel * rescale_factor - mean) / std."""
    from keras_hub.layers import ImageConverter

    given = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    scale = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    mean, deviation = np.zeros(3), np.ones(3)
    if given.get("do_normalize", True):
        mean, deviation = np.array(given["image_mean"]), np.array(given["image_std"])
    how = _INTERPOLATIONS[given.get("resample", 2)]
    scaling = {"scale": list(scale / deviation), "offset": list(-mean / deviation)}
    return ImageConverter(**scaling, interpolation=how, antialias=True)  # PIL always smooths when it shrinks
