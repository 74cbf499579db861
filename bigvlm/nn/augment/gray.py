"""Colours dropped (SimCLR, arXiv 2002.05709, appendix A)."""

from collections.abc import Callable

import jax.numpy as jnp

from bigvlm.nn.augment._common import grey, sometimes


def gray(probability: float = .2) -> Callable:
    """All three planes become the image's luma (ITU-R BT.601)."""
    return sometimes(lambda image_CHW, key: jnp.broadcast_to(grey(image_CHW), image_CHW.shape), probability)
