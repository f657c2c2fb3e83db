"""How a built or loaded model hangs together: what other rooms may rely on.

`cancernet` and `simple_cnn` are one flat `keras.Sequential`. A transfer model is

    image -> extractor -> head -> probabilities

where `extractor` (raw image -> pooled features: preprocessing, every layer of the backbone, global average pooling)
and `head` (features -> dropout, batch normalisation, dense softmax) are two flat sub-models of those names. Nothing
is nested deeper. All this comes back from a saved file, so each function here works on a loaded model too.
"""

import keras


def image_shape(height, width, depth):
    """Shape of one image, in the order of axes that Keras is set to."""
    if keras.config.image_data_format() == "channels_first":
        return (depth, height, width)
    return (height, width, depth)


def channel_axis():
    """Axis of the channels in a batch of images: 1 or -1, after the order of axes that Keras is set to."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def split_model(model):
    """The two halves of a transfer model: `(extractor, head)`, sharing their weights with `model`.

    `extractor` maps raw images to features [n, f] float32 and `head` maps these to probabilities, so that the features
    of a frozen backbone are computed once and training `head` on them trains `model`. Raises ValueError for a model
    that is not made of the two (`has_backbone`).
    """
    if not has_backbone(model):
        raise ValueError(f"{model.name} is not made of an extractor and a head; only the transfer models are.")
    return model.get_layer("extractor"), model.get_layer("head")


def has_backbone(model):
    """Whether `model` is a transfer model: an extractor followed by a head."""
    return {"extractor", "head"} <= {layer.name for layer in model.layers}


def set_trainable(model, phase):
    """Choose what training changes: phase `head` (the backbone is frozen) or `all`. Compile afterwards.

    Batch normalisation of the backbone is frozen in both phases. That is what keeps it in inference mode, on its
    stored mean and variance, and it is saved with the model; calling the extractor with training=False would not do,
    because Keras 3 replaces it by the training=True of the surrounding call.
    Raises ValueError for another phase, and for phase `head` of a model without a backbone.
    """
    if phase not in ("head", "all"):
        raise ValueError(f"A phase is head or all; got {phase}.")
    if phase == "head":
        extractor, head = split_model(model)
        extractor.trainable = False
        head.trainable = True
        return
    # One by one: on TensorFlow, setting a model to the value it already has does not reach what is inside.
    for part in (model, *model.layers):
        part.trainable = True
    if has_backbone(model):
        for layer in split_model(model)[0].layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)


def last_activation(model):
    """The last layer that answers a map and not a vector: `(owner, layer)`, the layer that Grad-CAM looks at.

    The layer is the activation after the last convolution, before any pooling; `owner` is the flat model that holds
    it, which is `model` itself or a transfer model's extractor. Raises ValueError where there is none.
    """
    owner = split_model(model)[0] if has_backbone(model) else model
    for layer in reversed(owner.layers):
        if isinstance(layer, keras.layers.Activation | keras.layers.ReLU) and len(layer.output.shape) == 4:
            return owner, layer
    raise ValueError(f"{model.name} has no activation that is a map; Grad-CAM needs a convolutional network.")


def with_activation_map(model):
    """A model sharing all weights with `model` that answers `[maps, probabilities]` for raw images.

    `maps` is the output of `last_activation`, [n, rows, columns, filters] (filters first where Keras is set so), and
    `probabilities` the very output of `model`, computed from those maps in the same pass: the gradient of one with
    respect to the other is what Grad-CAM needs (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).
    """
    owner, layer = last_activation(model)
    if owner is model:
        return keras.Model(model.inputs[0], [layer.output, model.outputs[0]], name="activation_map")
    extractor, head = split_model(model)
    both = keras.Model(extractor.inputs[0], [layer.output, extractor.outputs[0]], name="extractor_map")
    image = keras.Input(extractor.input_shape[1:], name="image")
    maps, features = both(image)
    return keras.Model(image, [maps, head(features)], name="activation_map")
