"""What convolutional towers share: pixels, convolutions, batch norm by a tower's fields, blocks that are gathered and remade.

B batch, H×W pixels or cells of a feature map, C its features, L cells row by row, D the pooled width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.norm import BatchNorm
from bigvlm.nn.transformer import choose, used

IMAGENET_MEAN, IMAGENET_STD = (.485, .456, .406), (.229, .224, .225)
CLIP_MEAN, CLIP_STD = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)

# Of kernels (side, side, inputs of a group, outputs).
INITS: dict[str, Callable] = {
    'he': nn.initializers.variance_scaling(2., 'fan_out', 'normal'),  # He et al., arXiv 1502.01852, as torchvision's ResNets
    'uniform': nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),  # PyTorch's default, as CLIP's ResNets
}


def pixels(image_BHWC, mean: tuple[float, ...], std: tuple[float, ...], dtype):
    """(x - mean) / std by colour, of uint8 images taken to [0, 1] (floats are there already), in ``dtype``."""
    if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
        image_BHWC = image_BHWC.astype(jnp.float32) / 255.
    wide = jnp.promote_types(image_BHWC.dtype, jnp.float32)
    return ((image_BHWC.astype(wide) - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(dtype)


class Conv(nn.Module):
    """A convolution [B, H, W, C] -> [B, H/stride, W/stride, features], rounded up.

    ``groups``: of inputs and outputs that see only each other. ``same``: pads as TensorFlow's 'SAME' does, which for a stride is one
    more after than before; otherwise (side - 1)/2 on every side, as PyTorch's models do.
    """
    features: int
    side: int = 1
    stride: int = 1
    groups: int = 1
    same: bool = False
    bias: bool = False
    kernel_init: Any = INITS['he']
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC):
        shape = (self.side, self.side, x_BHWC.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
        edge = (self.side - 1) // 2
        y_BHWC = jax.lax.conv_general_dilated(
            x_BHWC.astype(self.dtype), kernel, (self.stride, self.stride), 'SAME' if self.same else ((edge, edge),) * 2,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=self.groups)
        if self.bias:
            y_BHWC = y_BHWC + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return checkpoint_name(y_BHWC, 'hidden')  # before its norm and activation


def norm(tower: nn.Module) -> Callable[..., nn.Module]:
    """BatchNorm by the fields ``bn_group``, ``bn_blocks``, ``bn_momentum`` and ``bn_epsilon`` of a tower."""
    return functools.partial(BatchNorm, group=tower.bn_group, momentum=tower.bn_momentum, epsilon=tower.bn_epsilon, blocks=tower.bn_blocks)


def block(module: type[nn.Module], tower: nn.Module, name: str) -> type[nn.Module]:
    """``module``, which is to be ``name`` in ``tower``: its parameters are gathered for it alone, in the tower's dtype, and of
    its activations it keeps what the tower's ``remat`` says: 'none' keeps all; 'full' its input only; a choice with 'hidden'
    the outputs of convolutions, from which norms and activations are made again. Statistics of norms are kept by all but 'full'.
    """
    found = used(module, tower, name, jnp.dtype(tower.dtype))
    rematerialise, policy = transformer.remat_policy(tower.remat)
    if not rematerialise:
        return found
    if policy is not None:
        policies = jax.checkpoint_policies
        policy = policies.save_from_both_policies(policy, policies.save_only_these_names('statistics'))
    return nn.remat(found, policy=policy)


def tokens(x_BHWC):
    """The cells of a feature map as tokens [B, L, C]."""
    return rearrange(x_BHWC, 'b h w c -> b (h w) c')


def pooled(x_BHWC):
    """The mean over cells [B, C], summed in float32."""
    wide = jnp.promote_types(x_BHWC.dtype, jnp.float32)
    return x_BHWC.astype(wide).mean((1, 2)).astype(x_BHWC.dtype)


def collect(maps: Sequence[Any], layers: tuple[int, ...]) -> dict[int, Any]:
    """{stage: tokens after it} of the stages asked for, from the feature maps after each; negative numbers count from the end."""
    for i in layers:
        if not -len(maps) <= i < len(maps):
            raise RecipeError(f'layers: there is no stage {i} among {len(maps)}')
    return {i: tokens(maps[i]) for i in layers}


def check(tower: nn.Module) -> None:
    """Raises RecipeError for fields of a convolutional tower that are impossible; needs no device."""
    choose(dict.fromkeys(('bfloat16', 'float16', 'float32', 'float64')), tower.dtype, 'dtype')
    transformer.remat_policy(tower.remat)
    if len(tower.mean) != len(tower.std) or 0. in tower.std:
        raise RecipeError(f'std: {tower.std} must be one number other than 0 per colour of mean, {tower.mean}')
    if tower.bn_group < 0:
        raise RecipeError(f'bn_group: found {tower.bn_group}; valid: a number of examples, or 0 for all')
    if tower.bn_blocks < 1:
        raise RecipeError(f'bn_blocks: found {tower.bn_blocks}; valid: a number of parts of the batch, from 1')
    if not 0. <= tower.bn_momentum < 1. or tower.bn_epsilon <= 0.:
        raise RecipeError(f'bn_momentum: found {tower.bn_momentum} with bn_epsilon {tower.bn_epsilon}; valid: in [0, 1), above 0')
