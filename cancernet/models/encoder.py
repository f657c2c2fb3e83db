"""A vision transformer of KerasHub as a feature extractor: a preset from Hugging Face, from Kaggle or in a folder."""

import keras
from keras import layers

from cancernet import InputError


def build_encoder(preset: str, image_size: int) -> keras.Model:
    """Build the network from raw images [n, image_size, image_size, 3], 0 to 255, to features [n, 2 * width].

    It resizes them to the encoder's own size and normalises them in Keras' own layers. The features are the class token
    and the mean of the patch tokens, as recommended for Virchow (Vorontsov et al. 2024), without register tokens.

    Args:
        preset: `hf://owner/name`, `kaggle://...`, a name that KerasHub knows, or a folder.

    Raises:
        InputError: the preset does not exist, cannot be downloaded, or is not a vision transformer with its
            preprocessing.
    """
    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
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
