"""From images to trained networks: input pipeline, augmentation, fitting, ensembles, heads, feature cache, search."""
