"""The model of a recipe: towers and objectives side by side, and the rounds over them.

B examples of the global batch, P pairs of a second round.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigvlm.core import parts, paths
from bigvlm.core.parts import RecipeError
from bigvlm.core.rounds import Rounds
from bigvlm.nn import augment as augment_lib
from bigvlm.nn.random import example_keys


class Encode:
    """``encode(tower, key)``: the Encoded of ``batch[key]``; each (tower, key, options) runs once in a trace, whoever asks.

    Keyed by names, not by arrays: two slices of one array would be two arrays. XLA does not merge repeated forwards.
    """

    def __init__(self, model: 'Model', batch: Mapping[str, Any], key, train: bool):
        self.model, self.batch, self.key, self.train, self.memo = model, batch, key, train, {}

    def __call__(self, tower: str, key: str, **options: Any):
        asked = (tower, key, tuple(sorted(options.items())))
        if asked not in self.memo:
            if tower not in self.model.towers:
                raise RecipeError(f'objectives: there is no tower {tower!r} (towers: {", ".join(self.model.towers)})')
            keys_B = None
            if self.train and self.key is not None:
                keys_B = example_keys(self.key, self.batch['id'], zlib.crc32(key.encode()))
            try:
                self.memo[asked] = getattr(self.model, tower)(paths.look_up(self.batch, key), keys_B=keys_B, train=self.train, **options)
            except RecipeError as e:  # the tower named its field; the recipe's key is known here
                raise RecipeError(f'towers.{tower}.{e}' if str(e).split(':')[0] in vars(getattr(self.model, tower)) else str(e)) from None
        return self.memo[asked]


class Model(nn.Module):
    """All learned parts. ``towers`` and ``objectives`` map an instance name, which is its parameter path, to its maker.

    ``augment`` has the steps that images under a batch key go through in training (``nn/augment``).
    """
    towers: Mapping[str, Callable[[], nn.Module]]
    objectives: Mapping[str, Callable[[], nn.Module]]
    augment: Mapping[str, tuple[augment_lib.Step, ...]] = dataclasses.field(default_factory=dict)

    def setup(self):
        for name, make in (*self.towers.items(), *self.objectives.items()):
            setattr(self, name, make())

    def active(self, kind: str) -> list[str]:
        """The objectives that serve batches of this kind."""
        return [name for name in self.objectives if kind in getattr(getattr(self, name), 'kinds', ('pairs',))]

    def features(self, batch, key=None, kind: str = 'pairs', train: bool = True):
        """Per example: ``{objective: {array: [B, …]}}``. Images are augmented here, if there is a key to draw from."""
        if train and key is not None:
            batch = augment_lib.augment(self.augment, batch, key)
        encode = Encode(self, batch, key, train)
        return {name: getattr(self, name).features(encode, batch) for name in self.active(kind)}

    def _paired(self, kind: str) -> list[str]:
        return [name for name in self.active(kind) if hasattr(getattr(self, name), 'features2')]

    def select(self, features, kind: str = 'pairs'):
        """Global, no gradient: the indices of the pairs of the second round."""
        return {name: getattr(self, name).select(features[name]) for name in self._paired(kind)}

    def pairs(self, features, selection, kind: str = 'pairs'):
        """Global, differentiable: ``{objective: {array: [P, …]}}``, with an ``id`` per pair for its randomness."""
        found = {}
        for name in self._paired(kind):
            pairs = getattr(self, name).pairs(features[name], selection[name])
            index_P = jnp.arange(jax.tree.leaves(pairs)[0].shape[0], dtype=jnp.uint32)
            found[name] = {**pairs, 'id': jnp.stack([index_P, jnp.full_like(index_P, zlib.crc32(name.encode()))], axis=1)}
        return found

    def features2(self, pairs, key=None, kind: str = 'pairs', train: bool = True):
        """Per pair: ``{objective: {array: [P, …]}}``."""
        return {name: getattr(self, name).features2(Encode(self, pairs[name], key, train), pairs[name]) for name in self._paired(kind)}

    def loss(self, features, features2=None, teachers=None, kind: str = 'pairs'):
        """Over the global batch: the weighted sum of the objectives' losses, and metrics ``objective/metric``.

        A metric whose name ends in ``_B`` is an array, one number per example, of which the step makes means per data set.
        """
        total, metrics = jnp.zeros((), jnp.float32), {}
        for name in self.active(kind):
            objective, given = getattr(self, name), {}
            if features2 is not None and name in features2:
                given['features2'] = features2[name]
            if getattr(objective, 'teacher', ''):
                given['teacher'] = teachers[objective.teacher][name]
            loss, found = objective.loss(features[name], **given)
            total = total + objective.weight * loss
            metrics |= {f'{name}/loss': loss, **{f'{name}/{key}': value for key, value in found.items()}}
        return total, metrics

    def embed(self, batch, objective: str):
        """The objective's unit-norm embeddings of what the batch holds (images, texts or both), without randomness."""
        return getattr(self, objective).embed(Encode(self, batch, None, False), batch)

    def score(self, image_MD, text_ND, objective: str):
        """[M, D], [N, D] -> the objective's similarities [M, N]."""
        return getattr(self, objective).score(image_MD, text_ND)

    def init_all(self, batches: Mapping[str, Any]):
        """Touches every parameter: each kind's rounds on a small batch of that kind."""
        for kind, batch in batches.items():
            features = self.features(batch, None, kind, False)
            features2 = None
            if self._paired(kind):
                pairs = self.pairs(features, self.select(features, kind), kind)
                features2 = self.features2(pairs, None, kind, False)
            teachers = {getattr(getattr(self, name), 'teacher', ''): features for name in self.active(kind)}
            self.loss(features, features2, teachers, kind)


def from_config(config: Mapping[str, Any], **overrides: Any) -> Model:
    """The model of a recipe, checked, before any device is touched. ``overrides``: fields of the towers that give them."""
    makers: dict[str, dict[str, Callable]] = {'towers': {}, 'objectives': {}}
    for group, made in makers.items():
        if not config[group]:
            raise RecipeError(f'{group}: the recipe has none')
        for name, spec in config[group].items():
            where = f'{group}.{name}'
            if not name.isidentifier() or hasattr(Model, name) or name in (*Model.__dataclass_fields__, *makers['towers']):
                raise RecipeError(f'{where}: this name is taken or is not an identifier')
            spec = parts.freeze(spec)
            if group == 'towers' and overrides:
                known = parts.fields(parts.find('bigvlm.towers', spec.get('name', ''), where))
                spec |= {field: value for field, value in overrides.items() if field in known}
            made[name] = parts.bind(f'bigvlm.{group}', spec, where)
            _check(made[name], where)
    model = Model(makers['towers'], makers['objectives'], augment_lib.build(config.get('augment', {})))
    _check_references(makers)
    return model


def _check(make: Callable, where: str) -> None:
    part = make()
    if hasattr(part, 'check'):
        try:
            part.check()
        except RecipeError as e:
            raise RecipeError(f'{where}.{e}') from None


def _check_references(makers) -> None:
    for name, make in makers['objectives'].items():
        objective = make()
        for field in ('image_tower', 'text_tower'):
            tower = getattr(objective, field, '') or getattr(objective, field.removesuffix('_tower'), None)
            if tower is not None and tower not in makers['towers']:
                raise RecipeError(f'objectives.{name}.{field}: there is no tower {tower!r} (towers: {", ".join(makers["towers"])})')


def rounds(model: Model, key, kind: str, second: bool) -> Rounds:
    """The model's methods as the pure functions that ``core.rounds`` differentiates; ``key`` is the step's."""
    def call(method):
        def function(params, collections, *args, **kwargs):
            return model.apply({'params': params, **collections}, *args, **kwargs, kind=kind, method=method, mutable=list(collections))
        return function

    def features(params, collections, batch):
        return call('features')(params, collections, batch, key)

    def loss(params, collections, features, features2, teachers):
        (value, metrics), updated = call('loss')(params, collections, features, features2, teachers)
        return value, (metrics, updated)

    if not second:
        return Rounds(features, loss)
    return Rounds(
        features, loss,
        select=lambda *args: call('select')(*args)[0],
        pairs=lambda *args: call('pairs')(*args)[0],
        features2=lambda params, collections, pairs: call('features2')(params, collections, pairs, key))


def has_second_round(model: Model, kind: str) -> bool:
    return any(hasattr(make(), 'features2') for make in model.objectives.values() if kind in getattr(make(), 'kinds', ('pairs',)))
