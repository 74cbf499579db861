"""A toy augmentation step of a user's own."""


def darken(factor: float = .5):
    return lambda image_CHW, key: factor * image_CHW
