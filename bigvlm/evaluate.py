"""A checkpoint under evaluators: in the training loop, and by itself.

    python -m bigvlm.evaluate --workdir runs/quickstart                          # the newest checkpoint
    python -m bigvlm.evaluate --workdir runs/quickstart --step 1000 --config configs/other_evals.py
"""

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
from bigvlm.core import durations, layout as layout_lib, parts
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.evals.embed import Embedder

log = logging.getLogger('bigvlm.evaluate')

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
            if not hasattr(model.objectives[objective](), 'embed'):
                raise RecipeError(f'{where}.objective: {objective!r} has no embeddings to evaluate')
            self.built[name] = objective, parts.build('bigvlm.evals', fields, where, datasets=datasets, tokenizers=tokenizers)

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
            if hasattr(evaluator, 'tokenizer') and hasattr(evaluator, 'length'):
                if evaluator.tokenizer not in self.datasets.tokenizers:
                    raise RecipeError(f'{where}.tokenizer: there is no tokenizer {evaluator.tokenizer!r} '
                                      f'(there are: {", ".join(self.datasets.tokenizers)})')
                text = {self.model.objectives[objective]().text: jax.ShapeDtypeStruct((2, evaluator.length), 'int32')}
                try:
                    jax.eval_shape(lambda p, c, b, o=objective: self.model.apply({'params': p, **c}, b, o, method='embed'),
                                   params, collections, text)
                except RecipeError as e:
                    raise RecipeError(f'{where}.length: {e}') from None

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
            embed, score = self._functions(objective, stored)
            embedder = Embedder(functools.partial(embed, params, collections), functools.partial(score, params, collections), mesh,
                                batch=self.specs[name].get('batch', 64))
            for metric, value in evaluator.run(embedder):
                yield f'{name}/{metric}', value
            yield f'{name}/seconds', time.perf_counter() - began

    def _functions(self, objective: str, stored: layout_lib.Layout | None) -> tuple[Callable, Callable]:
        """(embed, score), jitted once per objective for the life of the run."""
        if objective in self._jitted:
            return self._jitted[objective]

        def embed(params, collections, batch):
            with layout_lib.activate(stored):
                return self.model.apply({'params': params, **collections}, batch, objective, method='embed')

        def score(params, collections, image_MD, text_ND):
            return self.model.apply({'params': params, **collections}, image_MD, text_ND, objective, method='score')
        self._jitted[objective] = jax.jit(embed), jax.jit(score)
        return self._jitted[objective]


def main(config):
    """Evaluates one checkpoint of a workdir; prints ``name value`` lines, writes them to evaluation.json there."""
    from bigvlm import checkpoint, train  # the run's own set-up, which itself imports this file

    workdir = flags.FLAGS.workdir
    if not workdir:
        raise RecipeError('--workdir: which run? give its folder')
    if config is not None:
        config = recipe.resolve(config)
    else:
        path = os.path.join(workdir, 'config.json')
        if not os.path.exists(path):
            raise RecipeError(f'--workdir: {workdir} holds no run (no config.json)')
        with open(path, encoding='utf-8') as file:
            config = recipe.resolve(json.load(file))
    run = train.prepare(config)
    checkpoints = checkpoint.Checkpoints(os.path.join(workdir, 'checkpoints'), read_only=True)
    with jax.set_mesh(run.mesh):
        try:
            state, _, step = checkpoints.restore(run.placed.state(), flags.FLAGS.step)
        except checkpoint.CheckpointError as e:
            raise RecipeError(f'--workdir: {e}') from None
        found = {}
        for name, value in run.evaluators.run(list(run.evaluators.built), train.evaluated_params(run, state), state.collections,
                                              run.mesh, run.placed.stored):
            if isinstance(value, float):
                found[name] = value
                print(f'{name} {value:.6g}', flush=True)
    with open(os.path.join(workdir, 'evaluation.json'), 'w', encoding='utf-8') as file:
        json.dump({'step': step, **found}, file, indent=1)


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'The run to evaluate.')
    flags.DEFINE_integer('step', None, 'The checkpoint; the newest if not given.')
    recipe.run(main, config_required=False)
