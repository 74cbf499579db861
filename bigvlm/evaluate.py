"""A checkpoint under evaluators: in the training loop, and by itself.

    python -m bigvlm.evaluate --workdir runs/quickstart                          # the newest checkpoint
    python -m bigvlm.evaluate --workdir runs/quickstart --step 1000 --config configs/other_evals.py
"""

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import flags

from bigvlm import model as model_lib, recipe
from bigvlm.core import decoding, durations, layout as layout_lib, parts
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.evals.embed import Embedder

log = logging.getLogger('bigvlm.evaluate')

NEEDS = {'embed': 'embeddings to evaluate', 'advance': 'texts to write', 'reconstruct': 'images to reconstruct'}
_OURS = ('every', 'objective', 'batch')  # of an evaluator's spec: when, what it sees, and how many examples at a time


class Evaluators:
    """The recipe's evaluators, built and checked before any device is touched."""

    def __init__(self, config: Mapping[str, Any], model: model_lib.Model, datasets: pipeline.Datasets, tokenizers: Mapping[str, Any]):
        self.model, self.specs, self.datasets, self.built, self._jitted = model, config['evals'], datasets, {}, {}
        for name, spec in self.specs.items():
            where, fields = f'evals.{name}', {k: v for k, v in spec.items() if k not in _OURS}
            objective = spec.get('objective', next(iter(model.objectives)))
            if objective not in model.objectives:
                raise RecipeError(f'{where}.objective: there is no objective {objective!r} (there are: {", ".join(model.objectives)})')
            evaluator = parts.build('bigvlm.evals', fields, where, datasets=datasets, tokenizers=tokenizers)
            needs = getattr(evaluator, 'needs', 'embed')
            if not hasattr(model.objectives[objective](), needs):
                able = [other for other, make in model.objectives.items() if hasattr(make(), needs)]
                raise RecipeError(f'{where}.objective: {objective!r} has no {NEEDS.get(needs, needs)} '
                                  f'(these have: {", ".join(able) or "none"})')
            self.built[name] = objective, evaluator

    def check(self, params: Any, collections: Any, units: Mapping[str, Any]) -> None:
        """Raises RecipeError for what would only be found when an evaluator runs: its cadence, data, tokenizer, text length."""
        for name, (objective, evaluator) in self.built.items():
            where = f'evals.{name}'
            if self.specs[name].get('every', 'end') not in ('start', 'end'):
                durations.steps(self.specs[name]['every'], what=f'{where}.every', **units)
            for field in getattr(evaluator, 'reads', ()):
                dataset = getattr(evaluator, field)
                if dataset and dataset not in self.datasets.specs:
                    raise RecipeError(f'{where}.{field}: there is no dataset {dataset!r} (there are: {", ".join(self.datasets.specs)})')
            if hasattr(evaluator, 'tokenizer') and evaluator.tokenizer not in self.datasets.tokenizers:
                raise RecipeError(f'{where}.tokenizer: there is no tokenizer {evaluator.tokenizer!r} '
                                  f'(there are: {", ".join(self.datasets.tokenizers)})')
            if getattr(evaluator, 'needs', 'embed') == 'embed' and hasattr(evaluator, 'tokenizer') and hasattr(evaluator, 'length'):
                text = {self.model.objectives[objective]().text: jax.ShapeDtypeStruct((2, evaluator.length), 'int32')}
                try:
                    jax.eval_shape(lambda p, c, b, o=objective: self.model.apply({'params': p, **c}, b, o, method='embed'),
                                   params, collections, text)
                except RecipeError as e:
                    raise RecipeError(f'{where}.length: {e}') from None
            if hasattr(evaluator, 'sample'):
                self._check_loss(name, objective, evaluator.sample(), params, collections)

    def _check_loss(self, name: str, objective: str, example: Mapping[str, Any], params: Any, collections: Any) -> None:
        """Raises RecipeError if the objective could not measure whole batches of such examples: a key is missing, a queue is of others."""
        size = self.specs[name].get('batch', 64)
        batch = {key: jax.ShapeDtypeStruct((size, *value.shape), value.dtype) for key, value in example.items()}
        try:
            jax.eval_shape(lambda p, c, b: self.model.apply({'params': p, **c}, b, objective, method='measure', mutable=list(c)),
                           params, collections, batch)
        except RecipeError as e:
            raise RecipeError(f'evals.{name}, in batches of {size}: {e}') from None

    def due(self, *, step: int, final: bool, **units: Any) -> list[str]:
        """Which are to run at ``step``: 'start' ones at 0, 'end' ones at the end, others at their cadence and at the end."""
        found = []
        for name, spec in self.specs.items():
            every = spec.get('every', 'end')
            if every in ('start', 'end'):
                due = step == 0 if every == 'start' else final
            else:
                due = final or step > 0 and step % max(1, durations.steps(every, what=f'evals.{name}.every', **units)) == 0
            if due:
                found.append(name)
        return found

    def run(self, names: list[str], params: Any, collections: Any, mesh, stored: layout_lib.Layout | None
            ) -> Iterator[tuple[str, Any]]:
        """Yields ``('EVALUATOR/METRIC', float or figure)`` and each evaluator's seconds."""
        for name in names:
            objective, evaluator = self.built[name]
            began = time.perf_counter()
            log.info('evaluating %s', name)
            functions = Functions(self._functions(objective, stored), self.model.objectives[objective](), params, collections)
            part = functions.objective
            embedder = Embedder(functions.embed, functions.score, mesh, batch=self.specs[name].get('batch', 64), model=functions,
                                image_key=getattr(part, 'image', 'image'), text_key=getattr(part, 'text', 'text'))
            for metric, value in evaluator.run(embedder):
                yield f'{name}/{metric}', value
            yield f'{name}/seconds', time.perf_counter() - began

    def _functions(self, objective: str, stored: layout_lib.Layout | None) -> dict[str, Callable]:
        """{method of the model: function of (parameters, collections, …)}, jitted once per objective for the life of the run."""
        if objective in self._jitted:
            return self._jitted[objective]

        def apply(method, params, collections, *args):
            with layout_lib.activate(stored):
                found, _ = self.model.apply({'params': params, **collections}, *args, method=method, mutable=list(collections))
                return found

        def embed(params, collections, batch):
            return apply('embed', params, collections, batch, objective)

        def score(params, collections, image_MD, text_ND):
            return apply('score', params, collections, image_MD, text_ND, objective)

        def measure(params, collections, batch):
            return apply('measure', params, collections, batch, objective)

        def call(params, collections, batch, method):
            return apply('call', params, collections, batch, objective, method)

        def generate(params, collections, batch, how, axes, options):
            state = apply('call', params, collections, batch, objective, 'begin')
            given = dict(options)
            if 'seed' in given:
                given['key'] = jax.random.key(given.pop('seed'))
            if how == 'beam':
                given['axes'] = dict(axes)
            return getattr(decoding, how)(lambda ids_B, index, state: apply('advance', params, collections, ids_B, index, state, objective),
                                          state, len(jax.tree.leaves(batch)[0]), **given)
        self._jitted[objective] = dict(
            embed=jax.jit(embed), score=jax.jit(score), measure=jax.jit(measure), call=jax.jit(call, static_argnums=3),
            generate=jax.jit(generate, static_argnums=(3, 4, 5)))
        return self._jitted[objective]


class Functions:
    """What one objective of the model can be asked for, with the parameters filled in."""

    def __init__(self, jitted: Mapping[str, Callable], objective: Any, params: Any, collections: Any):
        self.objective = objective
        for name in ('embed', 'score', 'measure', 'call'):
            setattr(self, name, functools.partial(jitted[name], params, collections))
        self._generate = functools.partial(jitted['generate'], params, collections)

    def generate(self, batch: Any, how: str, options: tuple[tuple[str, Any], ...]) -> jax.Array:
        """int32 [B, L] by a function of core/decoding.py with these arguments."""
        return self._generate(batch, how, tuple(sorted(getattr(self.objective, 'state_axes', {}).items())), options)


def config_of(workdir: str) -> dict[str, Any]:
    """The recipe that a workdir's run was made by. Raises RecipeError if there is none."""
    path = os.path.join(workdir, 'config.json')
    if not os.path.exists(path):
        raise RecipeError(f'--workdir: {workdir} holds no run (no config.json)')
    with open(path, encoding='utf-8') as file:
        return json.load(file)


@contextlib.contextmanager
def restored(config: Mapping[str, Any], workdir: str, step: int | None = None) -> Iterator[tuple[Callable, int]]:
    """``(evaluate, step)`` of a workdir's checkpoint (None: the newest) under the evaluators of ``config``, a resolved recipe.

    ``evaluate(names)`` is ``Evaluators.run`` with the checkpoint's parameters, ``evaluate()`` that of all. Raises RecipeError
    if there is no such one.
    """
    from bigvlm import checkpoint, train  # the run's own set-up, which itself imports this file

    run = train.prepare(config)
    checkpoints = checkpoint.Checkpoints(os.path.join(workdir, 'checkpoints'), read_only=True)
    with jax.set_mesh(run.mesh):
        try:
            state, _, step = checkpoints.restore(run.placed.state(), step)
        except checkpoint.CheckpointError as e:
            raise RecipeError(f'--workdir: {e}') from None
        params = train.evaluated_params(run, state)

        def evaluate(names: list[str] | None = None) -> Iterator[tuple[str, Any]]:
            names = list(run.evaluators.built) if names is None else names
            return run.evaluators.run(names, params, state.collections, run.mesh, run.placed.stored)
        yield evaluate, step


def main(config):
    """Evaluates one checkpoint of a workdir; prints ``name value`` lines, writes them to evaluation.json there."""
    workdir = flags.FLAGS.workdir
    if not workdir:
        raise RecipeError('--workdir: which run? give its folder')
    config = recipe.resolve(config_of(workdir) if config is None else config)
    found = {}
    with restored(config, workdir, flags.FLAGS.step) as (evaluate, step):
        for name, value in evaluate():
            if isinstance(value, float):
                found[name] = value
                print(f'{name} {value:.6g}', flush=True)
    with open(os.path.join(workdir, 'evaluation.json'), 'w', encoding='utf-8') as file:
        json.dump({'step': step, **found}, file, indent=1)


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'The run to evaluate.')
    flags.DEFINE_integer('step', None, 'The checkpoint; the newest if not given.')
    recipe.run(main, config_required=False)
