"""EfficientNet (Tan & Le, arXiv 1905.11946): mobile inverted bottlenecks with squeeze-and-excitation, scaled together.

ALIGN (arXiv 2102.05918) uses L2 and B7 without the last 1×1 convolution: ``head=False``. B batch, H×W pixels or cells, C
features, L cells of the last feature map, D the pooled width.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from bigvlm.core import mesh
from bigvlm.core.parts import RecipeError
from bigvlm.nn import conv
from bigvlm.nn.conv import IMAGENET_MEAN, IMAGENET_STD, Conv
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.random import EMBED_PLACE, drop_path, dropout
from bigvlm.nn.transformer import choose, used


class Size(NamedTuple):
    """``wider`` and ``deeper`` than B0, and the ``image`` side that goes with it."""
    wider: float
    deeper: float
    image: int


SIZES = {'B0': Size(1., 1., 224), 'B1': Size(1., 1.1, 240), 'B2': Size(1.1, 1.2, 260), 'B3': Size(1.2, 1.4, 300), 'B4': Size(1.4, 1.8, 380),
         'B5': Size(1.6, 2.2, 456), 'B6': Size(1.8, 2.6, 528), 'B7': Size(2., 3.1, 600),
         'L2': Size(4.3, 5.3, 800)}  # L2: Xie et al., arXiv 1911.04252


class Stage(NamedTuple):
    """Blocks that ``expand`` their input, see ``side`` × side, and give ``features``; the first has the stride."""
    expand: int
    side: int
    stride: int
    features: int
    depth: int


# B0, table 1 of the paper; ahead of it a 3×3 convolution to STEM features with stride 2, behind it 1×1 to HEAD.
STEM, HEAD = 32, 1280
STAGES = (Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 2), Stage(6, 5, 2, 40, 2), Stage(6, 3, 2, 80, 3), Stage(6, 5, 1, 112, 3),
          Stage(6, 5, 2, 192, 4), Stage(6, 3, 1, 320, 1))

# Names of the same arrays in torchvision's state_dict. Kernels are [out, in, side, side] there. Stage 1 does not expand, so
# that what follows in a block has smaller numbers.
_NORM = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}


def _names(ours: str, theirs: str) -> dict[str, str]:
    return {f'{ours}_conv/kernel': f'{theirs}.0.weight', **{f'{ours}_norm/{mine}': f'{theirs}.1.{other}' for mine, other in _NORM.items()}}


def _block_names(stage: str, parts: tuple[str, ...]) -> dict[str, str]:
    found, block = {}, f'features.{stage}.{{block}}.block.'
    for i, part in enumerate(parts):
        if part == 'squeeze':
            found |= {f'stage{stage}_block{{block}}/{ours}/{mine}': f'{block}{i}.{theirs}.{other}' for mine, other in
                      (('kernel', 'weight'), ('bias', 'bias')) for ours, theirs in (('squeeze', 'fc1'), ('excite', 'fc2'))}
        else:
            found |= _names(f'stage{stage}_block{{block}}/{part}', f'{block}{i}')
    return found


FOREIGN = {**_names('stem', 'features.0'), **_names('head', f'features.{len(STAGES) + 1}'),
           **_block_names('1', ('depthwise', 'squeeze', 'project')),
           **{ours: theirs for stage in range(2, len(STAGES) + 1)
              for ours, theirs in _block_names(str(stage), ('expand', 'depthwise', 'squeeze', 'project')).items()}}


def _kernel_init(key, shape, dtype=jnp.float32):
    """Normal, by the outputs that an input reaches (He et al., arXiv 1502.01852): of a depthwise kernel side², not side²·features."""
    side, _, inputs, outputs = shape
    reached = outputs if inputs > 1 else 1
    return nn.initializers.normal(math.sqrt(2. / (side * side * reached)))(key, shape, dtype)


class Block(nn.Module):
    """1×1 to ``expand`` times the features, depthwise side × side, squeeze-and-excitation, 1×1 to ``features``: each with a norm,
    and swish between. With a shortcut where the shape stays: [B, H, W, C] -> [B, H/stride, W/stride, features]."""
    stage: Stage
    stride: int
    drop_path: float
    place: int
    same: bool
    norm: Callable[..., nn.Module]
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC, keys_B):
        def convolve(y_BHWC, name, features, **fields):
            y_BHWC = Conv(features, same=self.same, kernel_init=_kernel_init, dtype=self.dtype, name=f'{name}_conv', **fields)(y_BHWC)
            return self.norm(name=f'{name}_norm')(y_BHWC, self.train)

        x_BHWC = mesh.constrain_batch(x_BHWC)
        narrow, wide = x_BHWC.shape[-1], x_BHWC.shape[-1] * self.stage.expand
        y_BHWC = x_BHWC
        if self.stage.expand > 1:
            y_BHWC = nn.swish(convolve(y_BHWC, 'expand', wide))
        y_BHWC = nn.swish(convolve(y_BHWC, 'depthwise', wide, side=self.stage.side, stride=self.stride, groups=wide))
        gate_BHWC = conv.pooled(y_BHWC)[:, None, None]
        for name, features, activation in (('squeeze', max(1, narrow // 4), nn.swish), ('excite', wide, nn.sigmoid)):
            gate_BHWC = activation(Conv(features, bias=True, kernel_init=_kernel_init, dtype=self.dtype, name=name)(gate_BHWC))
        y_BHWC = convolve(y_BHWC * gate_BHWC, 'project', self.stage.features)
        if self.stride == 1 and narrow == self.stage.features:
            if self.drop_path:
                height = y_BHWC.shape[1]
                y_BLC = drop_path(conv.tokens(y_BHWC), self.drop_path, keys_B, self.place)
                y_BHWC = rearrange(y_BLC, 'b (h w) c -> b h w c', h=height)
            y_BHWC = x_BHWC + y_BHWC
        return mesh.constrain_batch(y_BHWC)


class EfficientNet(nn.Module):
    """uint8 or float images [B, H, W, C] -> Encoded; the tokens are the cells of the last feature map, before the mean over them.

    Fields:
        size: one of SIZES, or '' with ``wider`` and ``deeper`` (times B0) and ``image`` given; those override the size's.
        image: the side that the recipe gives; any other works as well.
        head: whether the last 1×1 convolution (1280 features times ``wider``) is there; without it B7 gives 640 and L2 1376.
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias.
        same: padding as TensorFlow's 'SAME', the authors'; otherwise even on both sides, torchvision's.
        dropout: of the pooled vector. drop_path: of the last block; grows from 0 with depth (the paper: .2).
        bn_group, bn_blocks, bn_momentum, bn_epsilon: see nn.norm.BatchNorm (the defaults are the authors'). Exact under micro-batching
            where bn_blocks·bn_group divides the micro-batch. bn_frozen: running statistics are used in training, too, and do not move.
        mean, std: normalisation of pixels in [0, 1], done here on the device.
        remat: what blocks keep for the backward pass, see nn.conv.block.
        dtype: of compute; parameters and statistics are float32.
    ``layers`` of a call count stages.
    """
    size: str = 'B0'
    wider: float = 0.
    deeper: float = 0.
    image: int = 0
    head: bool = True
    out_dim: int = 0
    out_bias: bool = True
    same: bool = True
    dropout: float = 0.
    drop_path: float = 0.
    bn_group: int = 0
    bn_blocks: int = 1
    bn_momentum: float = .99
    bn_epsilon: float = 1e-3
    bn_frozen: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    remat: str = 'none'
    dtype: str = 'bfloat16'

    def dims(self) -> Size:
        sizes = choose(SIZES, self.size, 'size') if self.size else (0., 0., 0)
        size = Size(*(own or known for own, known in zip((self.wider, self.deeper, self.image), sizes)))
        if not all(n > 0 for n in size):
            raise RecipeError(f'size: give one of {", ".join(SIZES)}, or wider, deeper and image, above 0')
        return size

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        self.dims()
        conv.check(self)
        for field in ('dropout', 'drop_path'):
            if not 0. <= getattr(self, field) < 1.:
                raise RecipeError(f'{field}: {getattr(self, field)} is not in [0, 1)')

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        image = self.dims().image
        return (image, image, len(self.mean)), 'uint8'

    def stages(self) -> Iterator[Stage]:
        """B0's stages at this size."""
        size = self.dims()
        for stage in STAGES:
            yield stage._replace(features=widened(stage.features, size.wider), depth=math.ceil(stage.depth * size.deeper))

    @nn.compact
    def __call__(self, image_BHWC, *, mask=None, keys_B=None, train=False, layers=()):
        self.check()
        wider, dtype, norm, moving = self.dims().wider, jnp.dtype(self.dtype), conv.norm(self), train and not self.bn_frozen
        keys_B = keys_B if train else None

        def convolve(x_BHWC, name, features, **fields):
            layer = used(Conv, self, f'{name}_conv', dtype)
            x_BHWC = layer(features, same=self.same, kernel_init=_kernel_init, dtype=dtype, name=f'{name}_conv', **fields)(x_BHWC)
            return nn.swish(norm(name=f'{name}_norm')(x_BHWC, moving))

        x_BHWC = conv.pixels(image_BHWC, self.mean, self.std, dtype)
        x_BHWC, maps, index = convolve(x_BHWC, 'stem', widened(STEM, wider), side=3, stride=2), [], 0
        stages = tuple(self.stages())
        last = sum(stage.depth for stage in stages)
        for number, stage in enumerate(stages, start=1):
            for i in range(stage.depth):
                name = f'stage{number}_block{i}'
                block = conv.block(Block, self, name)(stage, 1 if i else stage.stride, self.drop_path * index / last, index * 4, self.same,
                                                      norm, moving, dtype, name=name)
                x_BHWC, index = block(x_BHWC, keys_B), index + 1
            maps.append(x_BHWC)
        if self.head:
            x_BHWC = convolve(x_BHWC, 'head', widened(HEAD, wider))
        pooled_BD = dropout(conv.pooled(x_BHWC), self.dropout, keys_B, EMBED_PLACE)
        features_BD = pooled_BD
        if self.out_dim:
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, name='out')(pooled_BD)
        return Encoded(pooled_BD, conv.tokens(x_BHWC), None, conv.collect(maps, layers), features_BD)


def widened(features: int, wider: float) -> int:
    """The multiple of 8 nearest to wider·features, or the next one if that is more than a tenth less (the authors' rounding)."""
    wanted = features * wider
    found = max(8, int(wanted + 4) // 8 * 8)
    return found if found >= .9 * wanted else found + 8
