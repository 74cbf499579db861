"""ResNet (He et al., arXiv 1512.03385), version 1.5: a bottleneck's stride is in its 3×3 convolution, as in torchvision.

B batch, H×W pixels or cells, C features, L cells of the last feature map, D the pooled width.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bigvlm.core import mesh
from bigvlm.core.parts import RecipeError
from bigvlm.nn import conv
from bigvlm.nn.conv import IMAGENET_MEAN, IMAGENET_STD, Conv
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.transformer import choose, used

# (bottlenecks or pairs of 3×3 convolutions, blocks of each stage): the paper's table 1.
SIZES = {'18': (False, (2, 2, 2, 2)), '34': (False, (3, 4, 6, 3)), '50': (True, (3, 4, 6, 3)), '101': (True, (3, 4, 23, 3)),
         '152': (True, (3, 8, 36, 3))}

# Names of the same arrays in torchvision's state_dict. Kernels are [out, in, side, side] there.
_NORM = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_BLOCK = 'layer{stage}.{block}.'
FOREIGN = {
    'stem_conv/kernel': 'conv1.weight', **{f'stem_norm/{ours}': f'bn1.{theirs}' for ours, theirs in _NORM.items()},
    'stage{stage}_block{block}/shortcut_conv/kernel': _BLOCK + 'downsample.0.weight',
    **{f'stage{{stage}}_block{{block}}/shortcut_norm/{ours}': f'{_BLOCK}downsample.1.{theirs}' for ours, theirs in _NORM.items()},
    **{f'stage{{stage}}_block{{block}}/conv{i}/kernel': f'{_BLOCK}conv{i}.weight' for i in (1, 2, 3)},
    **{f'stage{{stage}}_block{{block}}/norm{i}/{ours}': f'{_BLOCK}bn{i}.{theirs}'
       for i in (1, 2, 3) for ours, theirs in _NORM.items()},
}


class Block(nn.Module):
    """Two 3×3 convolutions, or a ``bottleneck`` of 1×1, 3×3 and 1×1 (to 4·width features), beside a shortcut.

    [B, H, W, C] -> [B, H/stride, W/stride, features].
    """
    width: int
    bottleneck: bool
    stride: int
    zero_scale: bool
    norm: Callable[..., nn.Module]
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC):
        x_BHWC = mesh.constrain_batch(x_BHWC)
        sides = (1, 3, 1) if self.bottleneck else (3, 3)
        features = self.width * (4 if self.bottleneck else 1)
        y_BHWC = x_BHWC
        for i, side in enumerate(sides, start=1):
            last = i == len(sides)
            stride = self.stride if side == 3 and (self.bottleneck or i == 1) else 1
            y_BHWC = Conv(features if last else self.width, side, stride, dtype=self.dtype, name=f'conv{i}')(y_BHWC)
            scale_init = nn.initializers.zeros if last and self.zero_scale else nn.initializers.ones
            y_BHWC = self.norm(scale_init=scale_init, name=f'norm{i}')(y_BHWC, self.train)
            y_BHWC = y_BHWC if last else nn.relu(y_BHWC)
        if self.stride > 1 or x_BHWC.shape[-1] != features:
            x_BHWC = Conv(features, 1, self.stride, dtype=self.dtype, name='shortcut_conv')(x_BHWC)
            x_BHWC = self.norm(name='shortcut_norm')(x_BHWC, self.train)
        return mesh.constrain_batch(nn.relu(x_BHWC + y_BHWC))


class ResNet(nn.Module):
    """uint8 or float images [B, H, W, C] -> Encoded; the tokens are the cells of the last feature map, before the mean over them.

    Fields:
        size: one of SIZES, or '' with ``depths`` (blocks of each stage) given; ``depths`` and ``width`` override the size's.
        bottleneck: whether blocks of size '' are bottlenecks. width: of the first stage, 64 in all sizes.
        image: the side that the recipe gives; any other works as well.
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias.
        zero_scale: whether the last norm of every block starts with scale 0 (Goyal et al., arXiv 1706.02677).
        bn_group, bn_blocks, bn_momentum, bn_epsilon: see nn.norm.BatchNorm. Exact under micro-batching where bn_blocks·bn_group
            divides the micro-batch. bn_frozen: running statistics are used in training, too, and do not move.
        mean, std: normalisation of pixels in [0, 1], done here on the device.
        remat: what blocks keep for the backward pass, see nn.conv.block.
        dtype: of compute; parameters and statistics are float32.
    ``layers`` of a call count stages.
    """
    size: str = '50'
    depths: tuple[int, ...] = ()
    bottleneck: bool = True
    width: int = 64
    image: int = 224
    out_dim: int = 0
    out_bias: bool = True
    zero_scale: bool = False
    bn_group: int = 0
    bn_blocks: int = 1
    bn_momentum: float = .9
    bn_epsilon: float = 1e-5
    bn_frozen: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    remat: str = 'none'
    dtype: str = 'bfloat16'

    def dims(self) -> tuple[bool, tuple[int, ...]]:
        """(bottlenecks, blocks of each stage)."""
        bottleneck, depths = choose(SIZES, self.size, 'size') if self.size else (self.bottleneck, ())
        depths = tuple(self.depths) or depths
        if not depths or min(depths) < 1:
            raise RecipeError(f'size: give one of {", ".join(SIZES)}, or depths of at least 1')
        return bottleneck, depths

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        self.dims()
        conv.check(self)
        for field in ('width', 'image'):
            if getattr(self, field) < 1:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: from 1')

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        return (self.image, self.image, len(self.mean)), 'uint8'

    @nn.compact
    def __call__(self, image_BHWC, *, mask=None, keys_B=None, train=False, layers=()):
        self.check()
        bottleneck, depths = self.dims()
        dtype, norm, train = jnp.dtype(self.dtype), conv.norm(self), train and not self.bn_frozen
        x_BHWC = conv.pixels(image_BHWC, self.mean, self.std, dtype)
        x_BHWC = used(Conv, self, 'stem_conv', dtype)(self.width, 7, 2, dtype=dtype, name='stem_conv')(x_BHWC)
        x_BHWC = nn.relu(norm(name='stem_norm')(x_BHWC, train))
        x_BHWC = nn.max_pool(x_BHWC, (3, 3), (2, 2), ((1, 1), (1, 1)))
        maps = []
        for stage, depth in enumerate(depths):
            for i in range(depth):
                name, stride = f'stage{stage + 1}_block{i}', 2 if stage and not i else 1
                block = conv.block(Block, self, name)
                x_BHWC = block(self.width << stage, bottleneck, stride, self.zero_scale, norm, train, dtype, name=name)(x_BHWC)
            maps.append(x_BHWC)
        pooled_BD = conv.pooled(x_BHWC)
        features_BD = pooled_BD
        if self.out_dim:
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, name='out')(pooled_BD)
        return Encoded(pooled_BD, conv.tokens(x_BHWC), None, conv.collect(maps, layers), features_BD)
