"""A checkpoint under evaluators: in the training loop, and by itself.

    python -m bigvlm.evaluate --workdir runs/quickstart                          # the newest checkpoint
    python -m bigvlm.evaluate --workdir runs/quickstart --step 1000 --config configs/other_evals.py
    python -m bigvlm.evaluate --checkpoint hf:DIR --val 'DIR/val-*.tar'          # another library's model
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import flags

from bigvlm import functions, loaded, model as model_lib, prepared, recipe
from bigvlm.core import durations, layout as layout_lib, mesh as mesh_lib, parts, stages
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.interop.source import Source, open_source

log = logging.getLogger('bigvlm.evaluate')

NEEDS = {'embed': 'embeddings to evaluate', 'advance': 'texts to write', 'reconstruct': 'images to reconstruct'}
_OURS = ('every', 'objective', 'batch')  # of an evaluator's spec: when, what it sees, and how many examples at a time


class Evaluators:
    """The recipe's evaluators, built and checked before any device is touched."""

    def __init__(self, config: Mapping[str, Any], model: model_lib.Model, datasets: pipeline.Datasets, tokenizers: Mapping[str, Any]):
        self.model, self.specs, self.datasets, self.built, self._jitted = model, config['evals'], datasets, {}, {}
        for name, spec in self.specs.items():
            where, fields = f'evals.{name}', {k: v for k, v in spec.items() if k not in _OURS}
            objective = spec.get('objective') or next(iter(model.objectives))
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
            if objective not in self._jitted:  # once for the life of the run
                self._jitted[objective] = functions.jitted(self.model, objective, stored)
            found = functions.Functions(self._jitted[objective], self.model.objectives[objective](), params, collections)
            embedder = functions.embedder(found, mesh, self.specs[name].get('batch', 64))
            for metric, value in evaluator.run(embedder):
                yield f'{name}/{metric}', value
            yield f'{name}/seconds', time.perf_counter() - began


@contextlib.contextmanager
def opened(checkpoint: str | Source, config: Mapping[str, Any] | None = None) -> Iterator[tuple[Callable, loaded.Model]]:
    """``(evaluate, model)`` of a checkpoint (interop/source.py) under the evaluators of a recipe: ``config``, resolved, of which data,
    evals and, if there are any, tokenizers count; None: the run's own. ``evaluate(names)`` is ``Evaluators.run``, of all without names.

    Raises:
        RecipeError: there is no such checkpoint, or the evaluators do not fit it.
    """
    source = checkpoint if isinstance(checkpoint, Source) else open_source(checkpoint)
    if config is None and not source.config.get('evals'):
        raise RecipeError(f'--config: {source.where} says nothing of evaluations; valid: --val, --folder, or a recipe with data and evals')
    given = source.config if config is None else stages.configs(config)[-1]
    if config is not None and 'eval_params' in config and source.step is not None:  # by the averages that the given recipe names
        source = dataclasses.replace(source, config={**source.config, 'eval_params': config['eval_params']})
    any_of_them = next(iter(source.config.get('objectives', {})), '')  # each evaluator has its own
    model = loaded.Model(source, mesh=_mesh(source), objective=any_of_them)
    names = given.get('tokenizers') or source.config.get('tokenizers', {})
    tokenizers = pipeline.build_tokenizers(names, {**source.config.get('data', {}), **given['data']})
    evals = {name: {**spec, 'every': 'end'} for name, spec in given['evals'].items()}  # now, whatever their cadence in a run
    evaluators = Evaluators({'evals': evals}, model.module, pipeline.Datasets({'data': given['data'], 'seed': given.get('seed', 0)},
                                                                              tokenizers), tokenizers)
    evaluators.check(model.params, model.collections, {})

    def evaluate(names: list[str] | None = None) -> Iterator[tuple[str, Any]]:
        names = list(evaluators.built) if names is None else names
        return evaluators.run(names, model.params, model.collections, model.mesh, model.stored)
    with jax.set_mesh(model.mesh):
        yield evaluate, model


def _mesh(source: Source) -> Mapping[str, int]:
    """The run's, if there are devices for it; else all there are, with the batch split among them."""
    asked = source.config.get('mesh', {'data': -1})
    try:
        mesh_lib.axis_sizes(asked, len(jax.devices()))
        return asked
    except RecipeError:
        log.info('the mesh of %s is not for %d devices; here each holds all parameters', source.where, len(jax.devices()))
        return {'data': -1}


def of_files(val: str, folder: str, templates: str, source: Source) -> dict[str, Any]:
    """A recipe's data and evals for --val and --folder, with images prepared as the checkpoint's are."""
    objective = prepared.first_with_embeddings(prepared.module_of(source))
    ops, length = (dict(name='decode'), *prepared.image_ops(source, objective)), prepared.text_length(source, objective)
    both = dict(length=length, objective=objective, tokenizer=prepared.tokenizer_of(source.config))
    if both['tokenizer'] not in source.config.get('tokenizers', {}):
        raise RecipeError(f"--tokenizer: {source.where} has none; valid: one of ours, as 'sentencepiece,model=FILE'")
    c = recipe.new()
    if val:
        c.data.val = dict(source=dict(name='webdataset', files=val), ops=ops)
        c.evals.retrieval = dict(name='retrieval', data='val', **both)
    if folder:
        c.data.folder = dict(source=dict(name='folder', root=folder), ops=ops)
        c.evals.zero_shot = dict(name='zero_shot', data='folder', templates=templates, **both)
    c.kinds = {}
    return recipe.resolve(recipe.complete(c))


def main(config):
    """Evaluates one checkpoint; prints ``name value`` lines, and writes them to evaluation.json in a run's workdir."""
    given = flags.FLAGS
    if bool(given.workdir) == bool(given.checkpoint):
        raise RecipeError('--workdir, --checkpoint: which? give a run\'s folder, or a checkpoint such as hf:DIR')
    if given.checkpoint and given.step is not None:
        raise RecipeError('--step: of --workdir; a checkpoint has it in its name, WORKDIR@STEP')
    checkpoint = given.checkpoint or (given.workdir if given.step is None else f'{given.workdir}@{given.step}')
    source = open_source(checkpoint, given.tokenizer)
    if config is not None:
        config = recipe.resolve(config)
    elif given.val or given.folder:
        config = of_files(given.val, given.folder, given.templates, source)
    found = {}
    with opened(source, config) as (evaluate, model):
        for name, value in evaluate():
            if isinstance(value, float):
                found[name] = value
                print(f'{name} {value:.6g}', flush=True)
    if given.workdir:
        with open(os.path.join(given.workdir, 'evaluation.json'), 'w', encoding='utf-8') as file:
            json.dump({'step': model.source.step, **found}, file, indent=1)


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'The run to evaluate.')
    flags.DEFINE_integer('step', None, 'Its checkpoint; the newest if not given.')
    flags.DEFINE_string('checkpoint', None, 'Instead: hf:DIR, hf:ORG/NAME, open_clip:FILE, npz:FILE, WORKDIR[@STEP].')
    flags.DEFINE_string('val', '', 'Image-text tars: retrieval, without a recipe.')
    flags.DEFINE_string('folder', '', 'A folder of images by class: zero-shot classification, without a recipe.')
    flags.DEFINE_string('tokenizer', '', "Of a checkpoint without one (npz:FILE), as 'sentencepiece,model=FILE,lower=True'.")
    flags.DEFINE_string('templates', 'photo', 'Prompts of --folder: a set of evals/prompts.py, or a file.')
    recipe.run(main, config_required=False)
