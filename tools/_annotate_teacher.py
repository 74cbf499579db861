"""The model of a finished run as a teacher: embeddings of images and captions for tools/annotate.py.

B examples together; C captions of one; D the pooled width.
"""
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange

from bigvlm import checkpoint, recipe, train
from bigvlm.core import layout as layout_lib
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.prepare.annotate import Annotator
from bigvlm.evals.embed import Embedder


@dataclasses.dataclass(frozen=True)
class Model:
    """`embedder(B)` embeds B at a time; `tokenize(texts)` gives ids as its text tower takes them; `known` says which model it is."""
    embedder: Callable[[int], Embedder]
    tokenize: Callable[[Sequence[str]], np.ndarray]
    known: dict[str, Any]


@contextlib.contextmanager
def opened(workdir: str, step: int, objective: str) -> Iterator[Model]:
    """The checkpoint of `step` (-1: the newest) of a run; its own data are opened, as an evaluation does. RecipeError if there is none."""
    path = Path(workdir, 'config.json')
    if not path.is_file():
        raise RecipeError(f'--workdir: {workdir} holds no run (no config.json)')
    config = recipe.resolve(json.loads(path.read_text(encoding='utf-8')) | {'evals': {}})
    run = train.prepare(config)
    checkpoints = checkpoint.Checkpoints(str(Path(workdir, 'checkpoints')), read_only=True)
    with jax.set_mesh(run.mesh):
        try:
            state, _, step = checkpoints.restore(run.placed.state(), None if step < 0 else step)
        except checkpoint.CheckpointError as error:
            raise RecipeError(f'--workdir: {error}') from None
        yield _model(run, train.evaluated_params(run, state), state.collections, objective, dict(workdir=str(workdir), step=step))


def _model(run: train.Run, params: Any, collections: Any, objective: str, known: dict[str, Any]) -> Model:
    model, stored = run.plan.model, run.placed.stored
    valid = [name for name, make in model.objectives.items() if hasattr(make(), 'embed')]
    objective = objective or next(iter(valid), '')
    if objective not in valid:
        raise RecipeError(f'--objective: found {objective!r}; valid: {", ".join(valid) or "none: no objective of the run has embeddings"}')
    made = model.objectives[objective]()

    @jax.jit
    def embed(params, collections, batch):
        with layout_lib.activate(stored):
            return model.apply({'params': params, **collections}, batch, objective, method='embed')

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        tower = getattr(made, 'text_tower', '') or made.text
        tokenizer = run.data.tokenizers[run.config['towers'][tower].get('tokenizer', tower)]
        (length,), _ = model.towers[tower]().example()
        return tokenizer(texts, length)
    keys = {f'{what}_key': getattr(made, what) for what in ('image', 'text') if hasattr(made, what)}

    def embedder(batch: int) -> Embedder:
        return Embedder(functools.partial(embed, params, collections), None, run.mesh, batch, **keys)
    return Model(embedder, tokenize, known | dict(objective=objective))


def annotator(model: Model, source: Any, picture: Callable[[int], np.ndarray] | None, what: Sequence[str], field: str, captions: int,
              together: int, seen: str) -> Annotator:
    """`FIELD_image` float16 [D] of what `picture` gives of an index, `FIELD_text` float16 [D], or [C, D] of `captions` > 1: the
    first so many captions, of fewer some again. An example without a caption is left out."""
    if not what or set(what) - {'image', 'text'} or captions < 1:
        raise RecipeError(f'--what, --captions: found {",".join(what)}, {captions}; valid: image, text or both, from 1')
    embedder = model.embedder(together)

    def read(index: int) -> dict[str, Any]:
        found: dict[str, Any] = {'image': picture(index)} if 'image' in what else {}
        if 'text' in what:
            texts = source.captions(index)
            if not texts:
                raise BadExample('no caption')
            found['texts'] = [texts[place % len(texts)] for place in range(captions)]
        return found

    def many(made: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
        rows: dict[str, np.ndarray] = {}
        if 'image' in what:
            rows[f'{field}_image'] = embedder.images([one['image'] for one in made])
        if 'text' in what:
            text_ND = embedder.texts(model.tokenize([text for one in made for text in one['texts']]))
            rows[f'{field}_text'] = text_ND if captions == 1 else rearrange(text_ND, '(b c) d -> b c d', c=captions)
        return [{name: row_BD[place].astype(np.float16) for name, row_BD in rows.items()} for place in range(len(made))]
    settings = dict(model.known, images=seen if 'image' in what else '', captions=captions)
    fields = tuple(f'{field}_{name}' for name in ('image', 'text') if name in what)
    return Annotator(fields, settings, lambda index, found: found, many, together, read)
