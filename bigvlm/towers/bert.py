"""BERT (Devlin et al., arXiv 1810.04805), RoBERTa (arXiv 1907.11692) and, with ``pre_norm``, FLAVA's text encoder.

B batch, L tokens, W token width, D the pooled width, V vocabulary.
"""

import jax.numpy as jnp
from flax import linen as nn

from bigvlm.core import layout
from bigvlm.core.foreign import Theirs
from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.embed import Embed
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.random import EMBED_PLACE, dropout
from bigvlm.nn.transformer import Transformer, choose, used

# (width, depth, MLP hidden width, heads): base and large from BERT's and RoBERTa's papers, the others from google-research/bert
# (Turc et al., arXiv 1908.08962).
SIZES = {
    'tiny': (128, 2, 512, 2), 'mini': (256, 4, 1024, 4), 'small': (512, 4, 2048, 8), 'medium': (512, 8, 2048, 8),
    'base': (768, 12, 3072, 12), 'large': (1024, 24, 4096, 16),
}
POOLS = ('cls', 'mean', 'max', 'pooler')

# Names of the same arrays in Hugging Face's BertModel and RobertaModel; {} is a layer, whose arrays are stacked here in
# their order. Kernels are transposed there. FLAVA's names are others: with pre_norm, ``encoder/norm`` is needed besides.
_LAYER = 'encoder.layer.{}.'
FOREIGN = {
    'embed/embedding': 'embeddings.word_embeddings.weight',
    'position': 'embeddings.position_embeddings.weight',
    'type': 'embeddings.token_type_embeddings.weight',
    **{f'{ours}/{mine}': f'{theirs}.{other}' for ours, theirs in {
        'embed_norm': 'embeddings.LayerNorm',
        'encoder/blocks/norm1': _LAYER + 'attention.output.LayerNorm',
        'encoder/blocks/norm2': _LAYER + 'output.LayerNorm',
    }.items() for mine, other in (('scale', 'weight'), ('bias', 'bias'))},
    **{f'{ours}/{mine}': f'{theirs}.{other}' for ours, theirs in {
        'encoder/blocks/attention/query': _LAYER + 'attention.self.query',
        'encoder/blocks/attention/key': _LAYER + 'attention.self.key',
        'encoder/blocks/attention/value': _LAYER + 'attention.self.value',
        'encoder/blocks/attention/out': _LAYER + 'attention.output.dense',
        'encoder/blocks/mlp/fc1': _LAYER + 'intermediate.dense',
        'encoder/blocks/mlp/fc2': _LAYER + 'output.dense',
        'pooler': 'pooler.dense',
    }.items() for mine, other in (('kernel', 'weight'), ('bias', 'bias'))},
}

# Names in big_vision, whose text tower with BERT is flaxformer's. Kernels lead with their inputs.
_FLAX_LAYER = 'BertEncoder_0/encoder_block/layer_sequence/layers_{}/'
BIG_VISION = {
    'embed/embedding': 'BertEncoder_0/embedder/embedders_token_ids/embedding',
    'position': 'BertEncoder_0/embedder/embedders_position_ids/embedding',
    'type': 'BertEncoder_0/embedder/embedders_segment_ids/embedding',
    **{f'{ours}/{name}': f'{theirs}/{name}' for ours, theirs in {
        'embed_norm': 'BertEncoder_0/layer_norm',
        'encoder/blocks/norm1': _FLAX_LAYER + 'attention_block/layer_norm',
        'encoder/blocks/norm2': _FLAX_LAYER + 'mlp_block/layer_norm',
    }.items() for name in ('scale', 'bias')},
    **{f'{ours}/{name}': Theirs(f'{theirs}/{name}', pattern) for ours, theirs in {
        'encoder/blocks/attention/query': _FLAX_LAYER + 'attention_block/attention_layer/query',
        'encoder/blocks/attention/key': _FLAX_LAYER + 'attention_block/attention_layer/key',
        'encoder/blocks/attention/value': _FLAX_LAYER + 'attention_block/attention_layer/value',
        'encoder/blocks/attention/out': _FLAX_LAYER + 'attention_block/dense_layer',
        'encoder/blocks/mlp/fc1': _FLAX_LAYER + 'mlp_block/mlp/dense_layer',
        'encoder/blocks/mlp/fc2': _FLAX_LAYER + 'mlp_block/dense_layer',
        'out': 'head',
    }.items() for name, pattern in (('kernel', 'i o -> i o'), ('bias', ''))},
}


class Bert(nn.Module):
    """int32 token ids [B, L] -> Encoded. Padding, ``pad_id``, is attended to by none.

    Fields:
        vocab, length: size of the vocabulary, and the number of learned positions (texts may be shorter, not longer).
        size: one of SIZES, or '' with ``width``, ``depth``, ``heads`` (and ``mlp_dim``) given; those override the size's.
        first_position: the position of the first token; those before it are unused. 0 for BERT; 2 for RoBERTa, after its
            ``pad_id`` 1 (whose padding has a position of its own, which shows in the tokens of padding only).
        types: rows of the table of segments, 0 for none; a text is one segment, of the first (BERT has 2, RoBERTa 1).
        pre_norm: norms before attention and MLP, and one at the end, in place of BERT's after them (FLAVA).
        qkv_bias: whether queries, keys and values have biases (BERT's have).
        pool: 'cls' (the first token), 'mean' or 'max' of the real tokens, or 'pooler': a dense layer of the first token and tanh.
        neck: width of a norm and a linear layer between the pool and the projection, 0 for none (AltCLIP).
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias.
        dropout: of embeddings and of what attention and MLP add. BERT's dropout of attention weights is not there.
        RoBERTa: vocab=50_265, length=512, first_position=2, pad_id=1, types=1, norm_eps=1e-5.
    """
    vocab: int = 30_522
    length: int = 512
    size: str = 'base'
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_dim: int = 0
    first_position: int = 0
    types: int = 2
    pre_norm: bool = False
    qkv_bias: bool = True
    pool: str = 'cls'
    pad_id: int = 0
    neck: int = 0
    out_dim: int = 0
    out_bias: bool = True
    activation: str = 'gelu'
    init_scheme: str = 'bert'
    norm_eps: float = 1e-12
    dropout: float = 0.
    drop_path: float = 0.
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def dims(self) -> tuple[int, int, int, int]:
        """(width, depth, MLP hidden width, heads)."""
        sizes = choose(SIZES, self.size, 'size') if self.size else (0, 0, 0, 0)
        width, depth, mlp_dim, heads = (own or size for own, size in zip((self.width, self.depth, self.mlp_dim, self.heads), sizes))
        if not (width and depth and heads):
            raise RecipeError(f'size: give one of {", ".join(SIZES)}, or width, depth and heads')
        return width, depth, mlp_dim or 4 * width, heads

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        width, _, _, heads = self.dims()
        if width % heads:
            raise RecipeError(f'heads: {heads} heads do not divide the width {width}')
        choose(dict.fromkeys(POOLS), self.pool, 'pool')
        if not 0 <= self.pad_id < self.vocab:
            raise RecipeError(f'pad_id: {self.pad_id} is not a token of a vocabulary of {self.vocab}')
        for field, least in (('length', 1), ('first_position', 0), ('types', 0), ('neck', 0)):
            if getattr(self, field) < least:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: {least} or more')
        transformer.check(self)

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        return (self.length,), 'int32'

    def table(self):
        """The embeddings of the vocabulary as used, [V, W] in ``dtype``, for a prediction tied to them."""
        change = layout.to_used('/'.join((*self.path, 'embed')), jnp.dtype(self.dtype))
        return change({'params': self.get_variable('params', 'embed')})['params']['embedding']

    @nn.compact
    def __call__(self, text_BL, *, mask=None, keys_B=None, train=False, layers=()):
        self.check()
        width, depth, hidden, heads = self.dims()
        dtype = jnp.dtype(self.dtype)
        keys_B = keys_B if train else None
        mask_BL = text_BL != self.pad_id if mask is None else mask
        x_BLW = dropout(self.embed(text_BL, width, dtype), self.dropout, keys_B, EMBED_PLACE)
        encoder = Transformer(depth, heads, mlp_dim=hidden, activation=self.activation, init_scheme=self.init_scheme,
                              norm_eps=self.norm_eps, dropout=self.dropout, drop_path=self.drop_path, remat=self.remat, dtype=dtype,
                              implementation=self.attention, post_norm=not self.pre_norm, qkv_bias=self.qkv_bias, name='encoder')
        x_BLW, collected = encoder(x_BLW, keys_B=keys_B, mask_BL=mask_BL, layers=layers)
        pooled_BD = self.pooled(x_BLW, mask_BL)
        if self.neck:
            pooled_BD = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='neck_norm')(pooled_BD)
            pooled_BD = used(nn.Dense, self, 'neck', dtype)(self.neck, dtype=dtype, kernel_init=nn.initializers.truncated_normal(.02),
                                                            name='neck')(pooled_BD)
        if self.out_dim:
            out_init = nn.initializers.truncated_normal(.02) if self.init_scheme == 'bert' else nn.initializers.lecun_normal()
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, kernel_init=out_init, name='out')(pooled_BD)
        return Encoded(pooled_BD, x_BLW, mask_BL, collected)

    def embed(self, text_BL, width: int, dtype):
        """The norm of the sum of words, positions and the type of the only segment, [B, L, W]."""
        init = nn.initializers.truncated_normal(.02)
        if text_BL.shape[1] > self.length:
            raise RecipeError(f'length: texts of {text_BL.shape[1]} tokens are longer than the {self.length} positions')
        stored = layout.stored('/'.join((*self.path, 'embed', 'embedding')))
        x_BLW = used(Embed, self, 'embed', dtype)(self.vocab, width, dtype, init, stored, name='embed')(text_BL)
        position_LW = self.param('position', init, (self.first_position + self.length, width))
        added_LW = position_LW[self.first_position:][:text_BL.shape[1]]
        if self.types:
            added_LW = added_LW + self.param('type', init, (self.types, width))[0]
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='embed_norm')(x_BLW + added_LW.astype(dtype))

    def pooled(self, x_BLW, mask_BL):
        first_BW, mask_BL1 = x_BLW[:, 0], mask_BL[:, :, None]
        if self.pool == 'cls':
            return first_BW
        if self.pool == 'pooler':
            init, width = nn.initializers.truncated_normal(.02), x_BLW.shape[-1]
            dense = used(nn.Dense, self, 'pooler', x_BLW.dtype)(width, dtype=x_BLW.dtype, kernel_init=init, name='pooler')
            return jnp.tanh(dense(first_BW))
        if self.pool == 'max':
            return jnp.max(jnp.where(mask_BL1, x_BLW, jnp.finfo(x_BLW.dtype).min), axis=1)
        count_B1 = jnp.maximum(mask_BL1.sum(axis=1), 1).astype(jnp.float32)
        return (jnp.where(mask_BL1, x_BLW, 0).astype(jnp.float32).sum(axis=1) / count_B1).astype(x_BLW.dtype)
