"""Augmentation of images on the device, inside the step's one program: uint8 in, float32 in [0, 1] out.

Each file here is a step: a function of its fields that returns ``step(image_CHW, key) -> image_CHW`` for one image,
float32 in [0, 1] as three planes. Planes, because a last axis of three colours leaves most of a vector unit idle.

Steps see one example and one key, so nothing they do depends on the batch, the mesh or the micro-batches around it. The
key is folded from (step key, example id, batch key, the step's place in the tuple), as dropout's are: two views of an
example draw apart, a resumed run draws the same, and an EMA teacher sees the very images that its student sees.

B batch, H, W pixels, C colours.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.nn.random import example_keys

Step = Callable[[jax.Array, jax.Array], jax.Array]

_PLACE = 3 << 30  # of the first step: apart from the places that towers fold into the same example's key (nn/random.py)


def build(config: Mapping[str, Any]) -> dict[str, tuple[Step, ...]]:
    """The recipe's ``augment``, {batch key: tuple of specs}, built. Raises RecipeError for unknown steps and fields."""
    return {key: tuple(parts.build('bigvlm.nn.augment', spec, f'augment.{key}[{place}]') for place, spec in enumerate(specs))
            for key, specs in config.items()}


def check(names: Mapping[str, Any], shapes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises RecipeError for a key of ``augment`` that no kind of batch has. ``shapes``: {kind: {key: …}}."""
    there = {key for found in shapes.values() for key in found}
    for name in names:
        if name not in there:
            raise RecipeError(f'augment.{name}: no batch has this key (there are: {", ".join(sorted(there - {"id"}))})')


def augment(steps: Mapping[str, tuple[Step, ...]], batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """The batch with the images under the keys of ``steps`` augmented; ``key`` is the step's.

    A key that this batch has not got belongs to another kind of batch (``check`` has seen that one has it).
    Raises RecipeError for what is no uint8 [B, H, W, 3].
    """
    found = dict(batch)
    for name in (name for name in steps if name in batch):
        image_BHWC = batch[name]
        if image_BHWC.dtype != jnp.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[-1] != 3:
            raise RecipeError(f'augment.{name}: takes uint8 images [B, H, W, 3], not {image_BHWC.dtype}{list(image_BHWC.shape)}')
        keys_B = example_keys(key, batch['id'], zlib.crc32(name.encode()))
        with jax.named_scope('augment'):
            found[name] = jax.vmap(lambda image_HWC, key, own=steps[name]: one(own, image_HWC, key))(image_BHWC, keys_B)
    return found


def one(steps: tuple[Step, ...], image_HWC: jax.Array, key: jax.Array) -> jax.Array:
    """All steps in order on one image: uint8 [H, W, 3] -> float32 [H, W, 3] in [0, 1]."""
    image_CHW = rearrange(image_HWC, 'h w c -> c h w').astype(jnp.float32) / 255.
    for place, step in enumerate(steps):
        image_CHW = step(image_CHW, jax.random.fold_in(key, _PLACE + place))
    return rearrange(image_CHW, 'c h w -> h w c')
