"""FILIP's token-wise late interaction (arXiv 2111.07783): images and texts meet token by token, in the loss alone.

Shapes: B batch, n image and m text tokens, W a tower's width, D the tokens' width, k tokens kept; M images and N texts to score,
F their flattened tokens.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bigvlm.core import late, pairwise, paths
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder


class LateInteraction(nn.Module):
    """Symmetric cross-entropy over the global batch of exp(t)·s_I for images and exp(t)·s_T for texts (``core/late``).

    Tokens of both towers go through a dense layer each, to ``width``, and are scaled to unit norm. ``skip`` leading image tokens
    are left out, 1 for a class token: the DeCLIP authors' re-implementation contrasts patches only. Padding of the text, as the
    tower's mask has it, counts nowhere; beginning and end of text do, where they are no padding.

    ``keep``: the fraction of an example's tokens that meet those of other examples, 1 for all; FLOPs of the loss go with its
    square. FILIP sends 25 % to other devices, by similarity to what the own device has, which would make the loss depend on
    the mesh; so, as in the re-implementation (which keeps 16), tokens are chosen per example, those with the largest summed
    similarity to the real tokens of the own counterpart. Both papers thin the other side only; here both sides are thinned.

    ``pooled``: the baseline that this is to be compared with: each side is the mean of its real tokens, before scaling to unit
    norm, so that the loss is CLIP's and evaluators of tokens find the same layers. ``keep`` is then not used.

    Evaluators see all tokens, and ``score`` is the mean of s_I and s_T: which of the two the paper takes was not found out. Its
    prompt ensembles average scores of prompts, not their embeddings (``average_scores``). ``target``, ``smoothing``,
    ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``contrastive``; ``tile=0`` takes what ``core/late`` finds best.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    width: int = 256
    skip: int = 0
    keep: float = 1.
    pooled: bool = False
    temperature: float = .07
    learned: bool = True
    target: str = 'identity'
    smoothing: float = 0.
    exchange: str = 'auto'
    tile: int = 0
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    average_scores = True  # of a class's prompts; no field: evals/zero_shot reads it

    def __post_init__(self):
        dual_encoder.check(self.target, self.temperature, self.exchange, self.tile or 1, self.dtype, self.wire)
        pairwise.check_smoothing(self.smoothing)
        if not 0. < self.keep <= 1.:
            raise RecipeError(f'keep: found {self.keep}; valid: a fraction above 0, at most 1')
        if self.width < 1:
            raise RecipeError(f'width: found {self.width}; valid: at least 1')
        if self.skip < 0:
            raise RecipeError(f'skip: found {self.skip}; valid: 0, or 1 to leave the class token out')
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t
        self.image_head, self.text_head = nn.Dense(self.width), nn.Dense(self.width)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit tokens ``image_BnD``, ``text_BmD`` that meet others, masks ``image_Bn``, ``text_Bm`` if not all are
        real, perhaps ``side_B``; RecipeError for a missing key."""
        for key in (self.image, self.text):
            paths.look_up(batch, key)
        (image_BnD, image_Bn), (text_BmD, text_Bm) = self._image(encode), self._text(encode)
        if self.pooled:
            image_BnD, image_Bn = _mean(image_BnD, image_Bn), None
            text_BmD, text_Bm = _mean(text_BmD, text_Bm), None
        image_BnD, text_BmD = dual_encoder.unit(image_BnD), dual_encoder.unit(text_BmD)
        if self.keep < 1. and not self.pooled:
            image_kept, text_kept = (_keep(self.keep, *both) for both in (
                (image_BnD, image_Bn, text_BmD, text_Bm), (text_BmD, text_Bm, image_BnD, image_Bn)))
            (image_BnD, image_Bn), (text_BmD, text_Bm) = image_kept, text_kept
        found = dict(image_BnD=image_BnD, text_BmD=text_BmD)
        found |= {name: mask for name, mask in (('image_Bn', image_Bn), ('text_Bm', text_Bm)) if mask is not None}
        side = dual_encoder.POSITIVES[self.target].side
        return found if side is None else found | {'side_B': side(batch, self.text)}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``scale``, ``accuracy``, and ``loss_B`` per example."""
        side, scale = features.get('side_B'), jnp.exp(self.t)
        loss, metrics = late.softmax(
            features['image_BnD'], features['text_BmD'], scale, rows_mask=features.get('image_Bn'), cols_mask=features.get('text_Bm'),
            target=dual_encoder.POSITIVES[self.target].target, rows_side=side, cols_side=side, smoothing=self.smoothing,
            exchange=self.exchange, tile=self.tile or None, dtype=self.dtype, wire=self.wire)
        return loss, metrics | {'scale': jax.lax.stop_gradient(scale)}

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Tokens of whichever of image and text the batch has, flattened: of each token D numbers and then 1, or 0 if padding; for
        probes what the image tower had before any projection, ``image_features_BD``."""
        sources = {'image_BD': (self.image, self._image), 'text_BD': (self.text, self._text)}
        found = {name: self._flat(*tokens(encode)) for name, (key, tokens) in sources.items() if paths.find(batch, key) is not None}
        if 'image_BD' in found:
            encoded = encode(self.image_tower or self.image, self.image)
            found['image_features_BD'] = encoded.pooled_BD if encoded.features_BD is None else encoded.features_BD
        return found

    def score(self, image_MF: jax.Array, text_NF: jax.Array) -> jax.Array:
        """½(s_I + s_T) [M, N]; with ``pooled`` the cosine of the means."""
        (image_MnD, image_Mn), (text_NmD, text_Nm) = self._unflat(image_MF), self._unflat(text_NF)
        if self.pooled:
            pooled = (dual_encoder.unit(_mean(*side))[:, 0] for side in ((image_MnD, image_Mn), (text_NmD, text_Nm)))
            return dual_encoder.score(*pooled)
        s_I, s_T = late.scores(image_MnD, text_NmD, image_Mn, text_Nm)
        return .5 * (s_I + s_T)

    def _image(self, encode: Callable) -> tuple[jax.Array, jax.Array | None]:
        """Tokens [B, n, D], not yet of unit norm, and the mask [B, n] of real ones, None if all are."""
        encoded = encode(self.image_tower or self.image, self.image)
        mask_BL = encoded.mask_BL
        return self.image_head(encoded.tokens_BLD[:, self.skip:]), None if mask_BL is None else mask_BL[:, self.skip:]

    def _text(self, encode: Callable) -> tuple[jax.Array, jax.Array | None]:
        encoded = encode(self.text_tower or self.text, self.text)
        return self.text_head(encoded.tokens_BLD), encoded.mask_BL

    def _flat(self, tokens_BnD: jax.Array, mask_Bn: jax.Array | None) -> jax.Array:
        tokens_BnD = tokens_BnD.astype(jnp.float32) if self.pooled else dual_encoder.unit(tokens_BnD)
        real_Bn1 = jnp.ones_like(tokens_BnD[..., :1]) if mask_Bn is None else mask_Bn[..., None].astype(tokens_BnD.dtype)
        return rearrange(jnp.concatenate([tokens_BnD, real_Bn1], axis=-1), 'b n d -> b (n d)')

    def _unflat(self, x_MF: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens_MnD = rearrange(x_MF, 'm (n d) -> m n d', d=self.width + 1)
        return tokens_MnD[..., :-1], tokens_MnD[..., -1] > 0


def _mean(tokens_BnD: jax.Array, mask_Bn: jax.Array | None) -> jax.Array:
    """[B, 1, D]: of the real tokens; of all where none is."""
    tokens_BnD = tokens_BnD.astype(jnp.float32)
    if mask_Bn is None:
        return tokens_BnD.mean(1, keepdims=True)
    real_Bn = mask_Bn | ~mask_Bn.any(1, keepdims=True)
    return tokens_BnD.mean(1, keepdims=True, where=real_Bn[..., None])


def _keep(fraction: float, own_BnD, own_Bn, other_BmD, other_Bm) -> tuple[jax.Array, jax.Array | None]:
    """The tokens with the largest Σ over the counterpart's real tokens of their similarity, [B, k, D], and their mask."""
    other_BmD = other_BmD if other_Bm is None else jnp.where(other_Bm[..., None], other_BmD, 0.)
    summed_Bn = jnp.einsum('bnd,bd->bn', own_BnD, other_BmD.sum(1), precision='highest')
    if own_Bn is not None:
        summed_Bn = jnp.where(own_Bn, summed_Bn, -jnp.inf)
    _, index_Bk = jax.lax.top_k(jax.lax.stop_gradient(summed_Bn), math.ceil(fraction * own_BnD.shape[1]))
    kept_BkD = jnp.take_along_axis(own_BnD, index_Bk[..., None], axis=1)
    return kept_BkD, None if own_Bn is None else jnp.take_along_axis(own_Bn, index_Bk, axis=1)
