"""What a model of another library is here: the recipe of its parts, where its arrays are, and how its images and texts are prepared."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm import model as model_lib
from bigvlm.core import foreign, parts, paths
from bigvlm.core.foreign import Table, Theirs
from bigvlm.state import abstract_variables, expected_shapes


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some of our arrays in their file: paths that begin with ``ours`` (a tower's 'image/', an objective's 'match/'), by templates
    without it (core/foreign.py), under names that begin with ``theirs``. ``sizes``: of axes that patterns put together."""
    ours: str
    templates: Mapping[str, str | Theirs]
    theirs: str = ''
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Description:
    """A model of another library.

    config: the recipe's groups that make the model: towers 'image' and 'text', objectives ('match' has the temperature), fusion and
        decoders if there are any. A tower alone has no objectives.
    pieces: every array of ours is in one of them.
    ignored: regexes of their names that carry nothing learned (buffers of position ids), or nothing that this model uses.
    image_ops: data ops that come after 'decode', so that an image is prepared as theirs.
    tokenizer: a spec of the recipe's ``tokenizers``, or None where the files that it needs are not there. length: tokens of a text.
    """
    config: Mapping[str, Any]
    pieces: tuple[Piece, ...]
    ignored: tuple[str, ...] = ()
    image_ops: tuple[Mapping[str, Any], ...] = ()
    tokenizer: Mapping[str, Any] | None = None
    length: int = 0

    @functools.cached_property
    def abstract(self) -> dict[str, Any]:
        """{path: ShapeDtypeStruct} of all parameters and of running statistics."""
        if self.config.get('objectives'):
            model = model_lib.from_config(self.config)
            params, collections = abstract_variables(model, {kind: expected_shapes(model, kind) for kind in model_lib.kinds(model)})
            return paths.flatten(params) | paths.flatten(collections.get('batch_stats', {}))
        found = {}
        for name, spec in self.config['towers'].items():
            tower = parts.build('bigvlm.towers', spec, f'towers.{name}')
            shape, dtype = tower.example()
            for arrays in jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((2, *shape), dtype)).values():
                found |= {f'{name}/{path}': x for path, x in paths.flatten(arrays).items()}
        return found

    @functools.cached_property
    def table(self) -> Table:
        """Raises WeightsError for an array of ours that no part has."""
        shapes = {path: x.shape for path, x in self.abstract.items()}
        found: dict[str, Any] = {}
        for piece in self.pieces:
            found |= foreign.table(piece.templates, shapes, ours=piece.ours, theirs=piece.theirs, **piece.sizes)
        if missing := sorted(shapes.keys() - found.keys()):
            raise foreign.WeightsError(f'{missing[0]}: the other library\'s model has no such array')
        return found
