"""How a built or loaded model hangs together: what other rooms may rely on.

`cancernet` and `simple_cnn` are one flat `keras.Sequential`. A transfer model is

    image -> extractor -> head -> probabilities

where `extractor` (raw image -> pooled features: preprocessing, every layer of the backbone, global average pooling of
its last two sizes of maps) and `head` (features -> dropout, batch normalisation, dense softmax) are two flat sub-models
of those names. Nothing is nested deeper. All this comes back from a saved file, so each function here works on a
loaded model too.
"""


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
    import keras

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
