"""What descriptions of transformers' models share: settings that must be so, activations, pieces of two towers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bigvlm.core import parts
from bigvlm.core.foreign import Theirs, WeightsError
from bigvlm.interop.description import Piece

# Theirs: ours. Of two that compute the same, the one that is written comes first.
_ACTIVATIONS = {'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh', 'quick_gelu': 'quick_gelu', 'relu': 'relu'}
TOWER = dict(dtype='float32', remat='none')  # of every tower that is described here
Tower = TypeVar('Tower')


def refuse(settings: Mapping[str, Any], where: str = '', **valid: Sequence[Any]) -> None:
    """Raises WeightsError for a setting that is there and is none of those that are valid."""
    for key, values in valid.items():
        if settings.get(key, values[0]) not in values:
            name = f'{where}.{key}' if where else key
            raise WeightsError(f'{name}: found {settings[key]!r}; valid: {", ".join(map(repr, values))}')


def activation(theirs: str) -> str:
    """Ours of that name of theirs."""
    if theirs not in _ACTIVATIONS:
        raise WeightsError(f'hidden_act: found {theirs!r}; valid: {", ".join(_ACTIVATIONS)}')
    return _ACTIVATIONS[theirs]


def activation_there(ours: str) -> str:
    return next(theirs for theirs, mine in _ACTIVATIONS.items() if mine == ours)


def count(settings: Mapping[str, Any], key: str, least: int = 1) -> int:
    """A whole number of at least that."""
    found = settings[key]
    if not isinstance(found, int) or isinstance(found, bool) or found < least:
        raise WeightsError(f'{key}: found {found!r}; valid: whole numbers from {least}')
    return found


def side(settings: Mapping[str, Any], key: str) -> int:
    """The side of a square, which they write as one number or as two."""
    found = settings[key]
    if isinstance(found, (list, tuple)) and len(found) == 2 and found[0] == found[1]:
        found = found[0]
    return count({key: found}, key)


def settings(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one tower of a model, ``defaults`` where the file says nothing. Old files may have them under key + '_dict', too,
    and there they count, as if nothing stood under the key."""
    older = config.get(f'{key}_dict')
    given = config.get(key) if older is None else older
    if not isinstance(given or {}, Mapping):
        raise WeightsError(f'{key}: a mapping is expected, found {given!r}')
    return dict(defaults) | {name: value for name, value in (given or {}).items() if value is not None or name not in defaults}


def blocks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ours that make a transformer's blocks, by the names that nearly all of their configs use."""
    width, heads = count(settings, 'hidden_size'), count(settings, 'num_attention_heads')
    if width % heads:
        raise WeightsError(f'num_attention_heads: {heads} heads do not divide hidden_size, {width}')
    return dict(size='', width=width, depth=count(settings, 'num_hidden_layers'), heads=heads, mlp_dim=count(settings, 'intermediate_size'),
                activation=activation(settings['hidden_act']), norm_eps=float(settings['layer_norm_eps']), **TOWER)


def blocks_there(tower: Any, dims: tuple[int, int, int, int]) -> dict[str, Any]:
    """The inverse of ``blocks``; ``dims``: width, depth, MLP hidden width and heads of ours."""
    width, depth, mlp_dim, heads = dims
    return dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp_dim,
                hidden_act=activation_there(tower.activation), layer_norm_eps=tower.norm_eps)


# Ours as theirs.

def build(spec: Mapping[str, Any] | None, kind: type[Tower], name: str) -> Tower:
    """The tower of that name, with all of its fields; WeightsError if there is none, or it is not of this kind."""
    if spec is None:
        raise WeightsError(f'towers: there is no tower {name!r}')
    tower = parts.build('bigvlm.towers', spec, f'towers.{name}')
    if not isinstance(tower, kind):
        raise WeightsError(f'towers.{name}.name: found {spec["name"]!r}; valid: {kind.__name__.lower()}')
    return tower


def two_towers(groups: Mapping[str, Any], image: type, text: type, objective: str) -> tuple[Any, Any, Any]:
    """(image tower, text tower, objective) of a recipe; WeightsError if it is not made of these. Other objectives than the only one
    of this name are none of an exported model's business."""
    towers = groups.get('towers', {})
    named = {name: spec for name, spec in groups.get('objectives', {}).items() if spec.get('name') == objective}
    if len(named) != 1:
        raise WeightsError(f'objectives: one {objective} objective is expected, found {", ".join(named) or "none"} '
                           f'(objectives: {", ".join(groups.get("objectives", {})) or "none"})')
    (name, spec), = named.items()
    return (build(towers.get('image'), image, 'image'), build(towers.get('text'), text, 'text'),
            parts.build('bigvlm.objectives', spec, f'objectives.{name}'))


def refuse_fields(part: Any, where: str, **valid: Sequence[Any]) -> None:
    """``refuse`` for fields of a part of ours."""
    refuse(vars(part), where, **valid)


def projection(image: Any, text: Any) -> int:
    """The width of both towers' last projections; WeightsError if there are none, or of two widths."""
    if not image.out_dim or image.out_dim != text.out_dim:
        raise WeightsError(f'towers.text.out_dim: found {text.out_dim}, and {image.out_dim} of the image tower; valid: the same, not 0')
    return image.out_dim


def temperature(settings: Mapping[str, Any]) -> float:
    """Of 'contrastive', by CLIP's initial logarithm of the scale; six digits, so that it comes back from a logarithm as it was."""
    return float(f'{math.exp(-float(settings.get("logit_scale_init_value", 2.6592))):.6g}')


def under(prefix: str, templates: Mapping[str, str | Theirs]) -> dict[str, str | Theirs]:
    """Templates whose names begin with ``prefix``."""
    return {path: Theirs(**(vars(spec) | {'name': prefix + spec.name})) if isinstance(spec, Theirs) else prefix + spec
            for path, spec in templates.items()}


def pieces(image: Mapping[str, str | Theirs], text: Mapping[str, str | Theirs], match: Mapping[str, str | Theirs],
           patch: int) -> tuple[Piece, ...]:
    """Of two towers and their objective, each by templates with their whole names."""
    return Piece('image/', image, sizes=dict(p=patch, q=patch)), Piece('text/', text), Piece('match/', match)
