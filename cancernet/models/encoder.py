"""A vision transformer of KerasHub as encoder: a preset of Hugging Face, of Kaggle or in a folder."""

import keras
from keras import layers

from cancernet import InputError
from cancernet.models.head import build_head
from cancernet.models.structure import attach_head


def build_encoder_model(preset: str, image_size: int, classes: int) -> keras.Model:
    """Build an encoder with a new head, in the parts that `cancernet.models.structure` describes.

    Args:
        preset: `hf://owner/name`, `kaggle://...`, a name that KerasHub knows, or a folder of one.
        image_size: side of the square images in pixels; another than the encoder's own is scaled to it in the model.
        classes: outputs of the network.

    Returns:
        An uncompiled network: [n, image_size, image_size, 3] of 0 to 255 -> [n, classes] softmax.

    Raises:
        InputError: the preset is none, cannot be fetched, or is no vision transformer with its preprocessing.
    """
    extractor = build_encoder(preset, image_size)
    return attach_head(extractor, build_head(extractor.output_shape[-1], classes), "encoder")


def build_encoder(preset: str, image_size: int) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3] to features [n, 2 width].

    The features are the class token and the mean of the patch tokens, as Virchow's authors give them (Vorontsov et al.
    2024). Register tokens are left out. The encoder's own scaling of pixels comes first, in Keras' own layers.

    Args:
        preset, image_size: as of `build_encoder_model`.

    Raises:
        InputError: as `build_encoder_model`.
    """
    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:  # what a hub, its network and a file of others raise is of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"KerasHub cannot load the encoder {preset}: {reason}") from error
    if len(backbone.output_shape) != 3 or not hasattr(backbone, "patch_size"):
        raise InputError(f"{preset} is a {type(backbone).__name__}, no vision transformer. Give one, such as DINOv2.")
    side = backbone.image_shape[0]
    image = keras.Input((image_size, image_size, 3), name="image")
    pixels = image
    if side != image_size:
        how = {"interpolation": converter.interpolation, "antialias": converter.antialias}
        pixels = layers.Resizing(side, side, name="resize", **how)(pixels)
    scale = 1.0 if converter.scale is None else converter.scale
    pixels = layers.Rescaling(scale, 0.0 if converter.offset is None else converter.offset, name="preprocess")(pixels)
    inputs = backbone.input
    tokens = backbone({next(iter(inputs)): pixels} if isinstance(inputs, dict) else pixels)
    patch = backbone.patch_size if isinstance(backbone.patch_size, int) else backbone.patch_size[0]
    patches = (side // patch) ** 2
    pooled = [layers.GlobalAveragePooling1D(name="patches")(_crop(tokens, tokens.shape[1] - patches, 0))]
    if tokens.shape[1] > patches:
        first = _crop(tokens, 0, tokens.shape[1] - 1)
        pooled.insert(0, layers.Flatten(name="class_token")(first))
    features = layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]
    return keras.Model(image, features, name="extractor")


def _crop(tokens: keras.KerasTensor, first: int, last: int) -> keras.KerasTensor:
    """The tokens without the first and the last."""
    return layers.Cropping1D((first, last))(tokens)
