"""The model of a recipe: towers, fusion, decoders and objectives side by side, and the rounds over them.

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


PARTS = ('towers', 'fusion', 'decoders', 'objectives')  # the recipe's groups of modules
_PREPARE = zlib.crc32(b'prepare')


class Encode:
    """``encode(tower, key)``: the Encoded of ``batch[key]``; each (tower, key, options) runs once in a trace, whoever asks.

    Keyed by names, not by arrays: two slices of one array would be two arrays. XLA does not merge repeated forwards. An
    option that is a string is a batch key, too, and the tower gets what is there: ``encode('image', 'image', masked='patch_mask')``.
    """

    def __init__(self, model: 'Model', batch: Mapping[str, Any], key, train: bool):
        self.model, self.batch, self.key, self.train, self.memo = model, batch, key, train, {}

    def __call__(self, tower: str, key: str, **options: Any):
        asked = (tower, key, tuple(sorted(options.items())))
        if asked not in self.memo:
            if tower not in self.model.towers:
                raise RecipeError(f'objectives: there is no tower {tower!r} (towers: {", ".join(self.model.towers)})')
            given = {name: paths.look_up(self.batch, value) if isinstance(value, str) else value for name, value in options.items()}
            try:
                self.memo[asked] = getattr(self.model, tower)(paths.look_up(self.batch, key), keys_B=self.keys(key), train=self.train,
                                                              **given)
            except RecipeError as e:  # the tower named its field; the recipe's key is known here
                raise RecipeError(f'towers.{tower}.{e}' if str(e).split(':')[0] in vars(getattr(self.model, tower)) else str(e)) from None
        return self.memo[asked]

    def part(self, name: str) -> nn.Module:
        """The recipe's fusion or decoder of this name, to be called on what towers gave."""
        if name not in {**self.model.fusion, **self.model.decoders}:
            raise RecipeError(f'objectives: there is no fusion or decoder {name!r} (fusion: {", ".join(self.model.fusion) or "none"}; '
                              f'decoders: {", ".join(self.model.decoders) or "none"})')
        return getattr(self.model, name)

    def tower(self, name: str) -> nn.Module:
        """A tower itself, for calls that are nobody else's: steps of a generation."""
        return getattr(self.model, name)

    def keys(self, what: str):
        """One random key per example for the use that ``what`` names; None where nothing is drawn (evaluation, initialisation)."""
        if not self.train or self.key is None:
            return None
        return example_keys(self.key, self.batch['id'], zlib.crc32(what.encode()))


class Model(nn.Module):
    """All learned parts. Each group maps an instance name, which is its parameter path, to its maker.

    ``augment`` has the steps that images under a batch key go through in training (``nn/augment``).
    """
    towers: Mapping[str, Callable[[], nn.Module]]
    objectives: Mapping[str, Callable[[], nn.Module]]
    augment: Mapping[str, tuple[augment_lib.Step, ...]] = dataclasses.field(default_factory=dict)
    fusion: Mapping[str, Callable[[], nn.Module]] = dataclasses.field(default_factory=dict)
    decoders: Mapping[str, Callable[[], nn.Module]] = dataclasses.field(default_factory=dict)

    def setup(self):
        for group in PARTS:
            for name, make in getattr(self, group).items():
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

    def measure(self, batch, objective: str):
        """One objective's loss and metrics of a batch, without randomness; for a teacher it gets its own features."""
        part, given = getattr(self, objective), {}
        features = part.features(Encode(self, batch, None, False), batch)
        if hasattr(part, 'features2'):
            pairs = {**part.pairs(features, part.select(features)), 'id': batch['id']}
            given['features2'] = part.features2(Encode(self, pairs, None, False), pairs)
        if getattr(part, 'teacher', ''):
            given['teacher'] = features
        loss, metrics = part.loss(features, **given)
        return {'loss': loss, **metrics}

    def call(self, batch, objective: str, method: str):
        """What a method ``(encode, batch)`` of an objective gives, without randomness: reconstructions, the start of a caption."""
        return getattr(getattr(self, objective), method)(Encode(self, batch, None, False), batch)

    def advance(self, ids_B, index, state, objective: str):
        """One token more of the texts that an objective generates -> (logits [B, V], state)."""
        return getattr(self, objective).advance(Encode(self, {}, None, False), ids_B, index, state)

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
    """The model of a recipe, checked, before any device is touched. ``overrides``: fields of the parts, but objectives, that have them."""
    makers: dict[str, dict[str, Callable]] = {group: {} for group in PARTS}
    for group, made in makers.items():
        specs = config.get(group, {})
        if not specs and group in ('towers', 'objectives'):
            raise RecipeError(f'{group}: the recipe has none')
        for name, spec in specs.items():
            where = f'{group}.{name}'
            taken = {*Model.__dataclass_fields__, *(other for before in makers.values() for other in before)}
            if not name.isidentifier() or hasattr(Model, name) or name in taken:
                raise RecipeError(f'{where}: this name is taken or is not an identifier')
            spec = parts.freeze(spec)
            known = parts.fields(parts.find(f'bigvlm.{group}', spec.get('name', ''), where)) if 'name' in spec else {}
            if group == 'objectives' and 'batch' in known and not spec.get('batch'):
                spec['batch'] = config.get('batch', 0)  # what a queue is a multiple of, unless the recipe says it
            if group != 'objectives' and overrides:
                spec |= {field: value for field, value in overrides.items() if field in known}
            made[name] = parts.bind(f'bigvlm.{group}', spec, where)
            _check(made[name], where)
    model = Model(makers['towers'], makers['objectives'], augment_lib.build(config.get('augment', {})), makers['fusion'],
                  makers['decoders'])
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
        for field, tower in towers_of(objective).values():
            if tower not in makers['towers']:
                raise RecipeError(f'objectives.{name}.{field}: there is no tower {tower!r} (towers: {", ".join(makers["towers"])})')


def kinds(model: Model) -> list[str]:
    """All kinds of batches that its objectives serve."""
    return sorted({kind for make in model.objectives.values() for kind in getattr(make(), 'kinds', ('pairs',))})


def towers_of(objective: nn.Module) -> dict[str, tuple[str, str]]:
    """{batch key: (field, tower)} that an objective encodes: its ``towers()`` if it says so, else by its fields ``image``,
    ``text`` and ``image_tower``, ``text_tower``."""
    if hasattr(objective, 'towers'):
        return objective.towers()
    found = {}
    for field in ('image', 'text'):
        key = getattr(objective, field, None)
        if key is not None:
            found[key] = f'{field}_tower', getattr(objective, f'{field}_tower', '') or key
    return found


def prepare(model: Model, batch: Mapping[str, Any], key, kind: str) -> Mapping[str, Any]:
    """The global batch after what objectives do to it as a whole, before the rounds and without gradient: mixing images, say."""
    for name, make in model.objectives.items():
        objective = make()
        if hasattr(objective, 'prepare') and kind in getattr(objective, 'kinds', ('pairs',)):
            batch = objective.prepare(batch, jax.random.fold_in(key, zlib.crc32(name.encode())))
    return batch


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

    def prepared(batch):
        return prepare(model, batch, jax.random.fold_in(key, _PREPARE), kind)

    first = prepared if any(hasattr(make(), 'prepare') for make in model.objectives.values()) else None
    if not second:
        return Rounds(features, loss, prepare=first)
    return Rounds(
        features, loss, prepare=first,
        select=lambda *args: call('select')(*args)[0],
        pairs=lambda *args: call('pairs')(*args)[0],
        features2=lambda params, collections, pairs: call('features2')(params, collections, pairs, key))


def has_second_round(model: Model, kind: str) -> bool:
    return any(hasattr(make(), 'features2') for make in model.objectives.values() if kind in getattr(make(), 'kinds', ('pairs',)))
