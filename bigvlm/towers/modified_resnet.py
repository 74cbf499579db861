"""CLIP's ResNet (Radford et al., arXiv 2103.00020, section 2.4): a stem of three convolutions, strides by averaging, attention pooling.

Average pooling before every strided convolution is an antialiasing filter. B batch, H×W pixels or cells, C features, L cells
of the last feature map, D the pooled width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from bigvlm.core import mesh
from bigvlm.core.parts import RecipeError
from bigvlm.nn import conv, positions
from bigvlm.nn.attention import IMPLEMENTATIONS, attend
from bigvlm.nn.conv import Conv
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.transformer import choose, used


class Size(NamedTuple):
    """``width`` of the first stage, blocks of each stage, the ``image`` side positions are stored for, and the pooled width."""
    width: int
    depths: tuple[int, ...]
    image: int
    out_dim: int


SIZES = {'RN50': Size(64, (3, 4, 6, 3), 224, 1024), 'RN101': Size(64, (3, 4, 23, 3), 224, 512),
         'RN50x4': Size(80, (4, 6, 10, 6), 288, 640), 'RN50x16': Size(96, (6, 8, 18, 8), 384, 768),
         'RN50x64': Size(128, (3, 15, 36, 10), 448, 1024)}
HEAD = 64  # width of a head of the attention pool
STRIDE = 4  # of the stem; each stage but the first halves once more

# Names of the same arrays in open_clip's (and OpenAI's) state_dict, after ``visual.``. Kernels are [out, in, side, side] there,
# or [out, in].
_NORM = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_BLOCK = 'layer{stage}.{block}.'
FOREIGN = {
    **{f'stem{i}_conv/kernel': f'conv{i}.weight' for i in (1, 2, 3)},
    **{f'stem{i}_norm/{ours}': f'bn{i}.{theirs}' for i in (1, 2, 3) for ours, theirs in _NORM.items()},
    **{f'stage{{stage}}_block{{block}}/conv{i}/kernel': f'{_BLOCK}conv{i}.weight' for i in (1, 2, 3)},
    **{f'stage{{stage}}_block{{block}}/norm{i}/{ours}': f'{_BLOCK}bn{i}.{theirs}' for i in (1, 2, 3) for ours, theirs in _NORM.items()},
    'stage{stage}_block{block}/shortcut_conv/kernel': _BLOCK + 'downsample.0.weight',
    **{f'stage{{stage}}_block{{block}}/shortcut_norm/{ours}': f'{_BLOCK}downsample.1.{theirs}' for ours, theirs in _NORM.items()},
    'pool/position': 'attnpool.positional_embedding',
    **{f'pool/{ours}/{mine}': f'attnpool.{theirs}.{other}' for mine, other in (('kernel', 'weight'), ('bias', 'bias'))
       for ours, theirs in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj'), ('out', 'c_proj'))},
}


class Block(nn.Module):
    """A bottleneck of 4·width features: [B, H, W, C] -> [B, H/stride, W/stride, 4·width]; all convolutions have stride 1."""
    width: int
    stride: int
    norm: Callable[..., nn.Module]
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC):
        def convolve(x_BHWC, name, features, side):
            return Conv(features, side, kernel_init=conv.INITS['uniform'], dtype=self.dtype, name=name)(x_BHWC)

        x_BHWC = mesh.constrain_batch(x_BHWC)
        y_BHWC = nn.relu(self.norm(name='norm1')(convolve(x_BHWC, 'conv1', self.width, 1), self.train))
        y_BHWC = nn.relu(self.norm(name='norm2')(convolve(y_BHWC, 'conv2', self.width, 3), self.train))
        y_BHWC = convolve(_shrunk(y_BHWC, self.stride), 'conv3', 4 * self.width, 1)
        y_BHWC = self.norm(scale_init=nn.initializers.zeros, name='norm3')(y_BHWC, self.train)
        if self.stride > 1 or x_BHWC.shape[-1] != 4 * self.width:
            x_BHWC = convolve(_shrunk(x_BHWC, self.stride), 'shortcut_conv', 4 * self.width, 1)
            x_BHWC = self.norm(name='shortcut_norm')(x_BHWC, self.train)
        return mesh.constrain_batch(nn.relu(x_BHWC + y_BHWC))


def _shrunk(x_BHWC, stride: int):
    return nn.avg_pool(x_BHWC, (stride, stride), (stride, stride)) if stride > 1 else x_BHWC


class AttentionPool(nn.Module):
    """One query, the mean cell, attends to itself and all cells, which have positions: [B, H, W, C] -> [B, out_dim].

    ``grid``: the rows and columns that positions are stored for; its first row is the mean's.
    """
    heads: int
    out_dim: int
    grid: tuple[int, int]
    dtype: Any
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, x_BHWC):
        width = x_BHWC.shape[-1]
        init = nn.initializers.normal(width ** -.5)  # openai/CLIP, initialize_parameters
        x_BLC = conv.tokens(x_BHWC)
        x_BLC = jnp.concatenate([conv.pooled(x_BHWC)[:, None], x_BLC], axis=1)
        position_LC = self.param('position', init, (1 + self.grid[0] * self.grid[1], width))
        cells_LC = positions.resample(position_LC[1:], self.grid, x_BHWC.shape[1:3])
        x_BLC = x_BLC + jnp.concatenate([position_LC[:1], cells_LC]).astype(self.dtype)

        def project(name, x_BLC):
            y_BLC = nn.Dense(width, dtype=self.dtype, kernel_init=init, name=name)(x_BLC)
            return rearrange(y_BLC, 'b l (n h) -> b l n h', n=self.heads)
        y_BLNH = attend(project('query', x_BLC[:, :1]), project('key', x_BLC), project('value', x_BLC), implementation=self.implementation)
        return nn.Dense(self.out_dim, dtype=self.dtype, kernel_init=init, name='out')(rearrange(y_BLNH, 'b 1 n h -> b (n h)'))


class ModifiedResNet(nn.Module):
    """uint8 or float images [B, H, W, C] -> Encoded; the tokens are the cells of the last feature map, before the attention pool.

    Fields:
        size: one of SIZES, or '' with ``width``, ``depths``, ``image`` and ``out_dim`` given; those override the size's.
        width: of the first stage; heads of the attention pool are 64 wide, of 32·width (for four stages). depths: blocks of each stage.
        image: the side whose feature map positions are stored for; those of others are resampled.
        out_dim: the pooled width, after the attention pool's last projection.
        bn_group, bn_blocks, bn_momentum, bn_epsilon: see nn.norm.BatchNorm. Exact under micro-batching where bn_blocks·bn_group
            divides the micro-batch. bn_frozen: running statistics are used in training, too, and do not move.
        mean, std: normalisation of pixels in [0, 1], done here on the device.
        remat: what blocks keep for the backward pass, see nn.conv.block.
        dtype: of compute; parameters and statistics are float32.
    ``layers`` of a call count stages.
    """
    size: str = 'RN50'
    width: int = 0
    depths: tuple[int, ...] = ()
    image: int = 0
    out_dim: int = 0
    bn_group: int = 0
    bn_blocks: int = 1
    bn_momentum: float = .9
    bn_epsilon: float = 1e-5
    bn_frozen: bool = False
    mean: tuple[float, ...] = conv.CLIP_MEAN
    std: tuple[float, ...] = conv.CLIP_STD
    remat: str = 'none'
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def dims(self) -> Size:
        sizes = choose(SIZES, self.size, 'size') if self.size else (0, (), 0, 0)
        size = Size(*(own or known for own, known in zip((self.width, tuple(self.depths), self.image, self.out_dim), sizes)))
        if not all(size) or min(size.depths) < 1:
            raise RecipeError(f'size: give one of {", ".join(SIZES)}, or width, depths, image and out_dim')
        return size

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        size = self.dims()
        if size.width % 2 or self._features(size) % HEAD:
            raise RecipeError(f'width: {size.width} makes a last feature map of {self._features(size)}; valid: an even width for which '
                              f'that is a multiple of {HEAD}')
        smallest = STRIDE << len(size.depths) - 1
        if size.image < smallest or size.image % smallest:
            raise RecipeError(f'image: found {size.image}; valid: a multiple of {smallest}')
        choose(dict.fromkeys(IMPLEMENTATIONS), self.attention, 'attention')
        conv.check(self)

    def _features(self, size: Size) -> int:
        return 4 * size.width << len(size.depths) - 1

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        image = self.dims().image
        return (image, image, len(self.mean)), 'uint8'

    @nn.compact
    def __call__(self, image_BHWC, *, mask=None, keys_B=None, train=False, layers=()):
        self.check()
        size, dtype, norm, train = self.dims(), jnp.dtype(self.dtype), conv.norm(self), train and not self.bn_frozen
        x_BHWC = conv.pixels(image_BHWC, self.mean, self.std, dtype)
        for i, (features, stride) in enumerate(((size.width // 2, 2), (size.width // 2, 1), (size.width, 1)), start=1):
            name = f'stem{i}_conv'
            x_BHWC = used(Conv, self, name, dtype)(features, 3, stride, kernel_init=conv.INITS['uniform'], dtype=dtype, name=name)(x_BHWC)
            x_BHWC = nn.relu(norm(name=f'stem{i}_norm')(x_BHWC, train))
        x_BHWC, maps = _shrunk(x_BHWC, 2), []
        for stage, depth in enumerate(size.depths):
            for i in range(depth):
                name, stride = f'stage{stage + 1}_block{i}', 2 if stage and not i else 1
                x_BHWC = conv.block(Block, self, name)(size.width << stage, stride, norm, train, dtype, name=name)(x_BHWC)
            maps.append(x_BHWC)
        side = size.image // (STRIDE << len(size.depths) - 1)
        pool = used(AttentionPool, self, 'pool', dtype)
        pooled_BD = pool(self._features(size) // HEAD, size.out_dim, (side, side), dtype, self.attention, name='pool')(x_BHWC)
        return Encoded(pooled_BD, conv.tokens(x_BHWC), None, conv.collect(maps, layers))
