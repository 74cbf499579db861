"""OTTER: contrast, and distillation from optimal transport between a teacher's images and texts (arXiv 2112.09445).

Shapes: B batch, D width, E twice the width, M images and N texts to score.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import pairwise, sinkhorn
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder


class Transport(nn.Module):
    """``alpha`` · InfoNCE + (1 - ``alpha``) · KL(plan || student), each summed over both directions (not halved), as released.

    The plan says which *other* pairs of the global batch go together: Sinkhorn's, with regularisation λ and a few
    iterations, of the cost C_ij = -(``image_image`` · v_i·v_j + ``text_text`` · t_i·t_j + v_i·t_j) between the teacher's unit
    image and text embeddings, without its diagonal (``others_only``; the released code adds 100 to the cost of each of both
    terms there, which is the same), normalised per row. The texts' plan is that of the transposed cost, begun with texts.
    The student's distributions have a temperature of their own. Nothing of B×B elements exists: the plans are two vectors of
    potentials, and targets are made tile by tile (``core/sinkhorn.py``). Besides two softmaxes over all pairs that takes
    2 · ``iterations`` + 1 passes over them, of twice the width and without gradients.

    ``teacher`` names an EMA of the recipe (paper: decay .999). ``image`` and ``text`` are batch keys, and the towers' names
    unless ``image_tower``, ``text_tower`` are given. ``temperature`` is the initial τ of both (paper: t = log(1/τ) = 3.9),
    t and t_plan the parameters; bounds (paper: e^t from 1 to 100) are the recipe's ``clamp`` rule's. ``exchange``, ``tile``,
    ``dtype``, ``wire`` are as in ``pairwise.softmax``; the teacher's products are always in full precision.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    teacher: str = 'teacher'
    weight: float = 1.
    alpha: float = .5
    temperature: float = math.exp(-3.9)
    regularisation: float = .15
    iterations: int = 5
    image_image: float = 1.
    text_text: float = 1.
    others_only: bool = True
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check('identity', self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        sinkhorn.check(self.iterations)
        if not 0. <= self.alpha <= 1.:
            raise RecipeError(f'alpha: found {self.alpha}; valid: 0 to 1')
        if not self.regularisation > 0.:
            raise RecipeError(f'regularisation: found {self.regularisation}; valid: a number above 0')
        if not self.teacher:
            raise RecipeError("teacher: found ''; valid: the name of an EMA of the recipe")
        super().__post_init__()

    def setup(self):
        initial = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: initial)
        self.t_plan = self.param('t_plan', lambda key: initial)

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, ``text_BD``; RecipeError for a missing key."""
        return dual_encoder.features(encode, batch, *self._sources(), 'identity')

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features and the teacher's, at least 2 examples: a scalar; ``contrast`` and ``distillation``
        (both sums over directions), ``accuracy`` of the contrast, ``entropy`` of the targets (mean, in nats), ``scale``,
        ``scale_plan``, and ``loss_B`` per example."""
        student = features['image_BD'], features['text_BD']
        options = dict(exchange=self.exchange, tile=self.tile)
        products = dict(dtype=self.dtype, wire=self.wire)
        scale, scale_plan = jnp.exp(self.t), jnp.exp(self.t_plan)
        contrast, found = pairwise.softmax(*student, scale, **options, **products)

        sides, targets = self._plan(teacher['image_BD'], teacher['text_BD'], options)
        weights = partial(sinkhorn.weights, scale=1 / self.regularisation, others_only=self.others_only)
        soft, soft_found = pairwise.softmax(*student, scale_plan, target=weights, rows_side=sides[0], cols_side=sides[1],
                                            **options, **products)
        entropy_B = targets.row_entropy + targets.col_entropy
        distillation = 2 * soft - entropy_B.mean()  # KL = cross-entropy - entropy; softmax() halves the sum over directions
        loss = 2 * self.alpha * contrast + (1 - self.alpha) * distillation
        loss_B = 2 * self.alpha * found['loss_B'] + (1 - self.alpha) * (2 * soft_found['loss_B'] - entropy_B)
        metrics = {'contrast': 2 * contrast, 'distillation': distillation, 'accuracy': found['accuracy'],
                   'entropy': entropy_B.mean() / 2, 'scale': scale, 'scale_plan': scale_plan, 'loss_B': loss_B}
        return loss, jax.lax.stop_gradient(metrics)

    def _plan(self, image_BD: jax.Array, text_BD: jax.Array, options: Mapping):
        """((rows' side, columns' side) for ``sinkhorn.weights``, targets). -C_ij = [v_i, t_i] · [vv v_j + t_j, tt t_j]."""
        image_BD, text_BD = jax.lax.stop_gradient((image_BD, text_BD))
        rows_BE = jnp.concatenate([image_BD, text_BD], axis=1)
        cols_BE = jnp.concatenate([self.image_image * image_BD + text_BD, self.text_text * text_BD], axis=1)
        targets = sinkhorn.targets(rows_BE, cols_BE, 1 / self.regularisation, iterations=self.iterations,
                                   others_only=self.others_only, **options)
        return ((rows_BE, targets.row), (cols_BE, targets.col)), targets

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
