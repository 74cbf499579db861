"""One run, from recipe to a trained and evaluated model; read it from top to bottom.

    python -m bigvlm.train --config configs/quickstart.py --workdir runs/quickstart

The same command resumes. One trainer serves every recipe: objectives, towers, sources and evaluators are parts.
"""

import dataclasses
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from bigvlm import blueprint, checkpoint, figures, metrics as metrics_lib, model as model_lib, optim, recipe, report
from bigvlm import start, step as step_lib, workdir
from bigvlm.blueprint import Blueprint, Placed
from bigvlm.core import durations, mesh as mesh_lib, paths, stages as stages_lib
from bigvlm.core.devices import peak_flops, peak_memory
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.evaluate import Evaluators
from bigvlm.feed import Feeds
from bigvlm.progress import Progress
from bigvlm.state import State

log = logging.getLogger('bigvlm.train')


@dataclasses.dataclass(frozen=True)
class Run:
    """What a recipe amounts to, with nothing allocated yet: its blueprint on a mesh in each stage, data and evaluators.

    ``first_steps``: of each stage; a run without stages has one. Evaluations see the last one's model.
    """
    config: Mapping[str, Any]
    stages: tuple[Placed, ...]
    first_steps: tuple[int, ...]
    data: pipeline.Data
    evaluators: Evaluators

    @property
    def placed(self) -> Placed:
        return self.stages[-1]

    @property
    def plan(self) -> Blueprint:
        return self.placed.plan

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.placed.mesh


# 1. Abstract before concrete: parts, shapes, layouts. Whatever is wrong with a recipe is said here.

def prepare(config: Mapping[str, Any]) -> Run:
    """Builds and checks everything but arrays. Devices are first asked about (not used) where the mesh is made."""
    data = pipeline.Data(config)
    check_averages(config)
    plans = []
    for number in range(len(data.stages)):
        with stages_lib.naming(number, config):
            plans.append(stage_plan(data, number))
    plan = plans[-1]
    for number, other in enumerate(plans):
        check_same_parameters(other, plan, f'stages.{number}')
    first_steps = stages_lib.starts(config, **plan.units)
    evaluators = Evaluators(data.configs[-1], plan.model, data.datasets, data.tokenizers)
    evaluators.check(plan.abstract.params, plan.abstract.collections, plan.units)
    start.entries(config, paths.flatten(plan.abstract.params) | paths.flatten(plan.abstract.collections.get('batch_stats', {})))
    intervals(config, plan.units)
    mesh = mesh_lib.make_mesh(config['mesh'])
    return Run(config, tuple(p.on(mesh) for p in plans), first_steps, data, evaluators)


def check_averages(config: Mapping[str, Any]) -> None:
    """Batch norm's running statistics are those of the weights in training, not of their average."""
    normed = [name for name, spec in config['towers'].items() if 'bn_group' in spec and not spec.get('bn_frozen')]
    if config['eval_params'] and normed:
        raise RecipeError(f"eval_params: found {config['eval_params']!r} with towers.{normed[0]}, whose running statistics are not "
                          "averaged; valid: '', or bn_frozen=True")


def stage_plan(data: pipeline.Data, number: int) -> Blueprint:
    """The blueprint of a stage, with batches as its data are."""
    staged, datasets = data.configs[number], data.stages[number]
    recipe.check(staged)
    model = model_lib.from_config(staged)
    check_tokens(model, data.tokenizers, staged)
    shapes = {kind: example_shapes(datasets, spec['data']) for kind, spec in staged['kinds'].items()}
    sources = {kind: {d.number: name for name, d in datasets.members(spec['data']).items()} for kind, spec in staged['kinds'].items()}
    return blueprint.make(staged, model=model, shapes=shapes, sources=sources, examples_per_epoch=data.examples_per_epoch())


def check_same_parameters(plan: Blueprint, last: Blueprint, where: str) -> None:
    """A stage may not change a parameter's shape: what it trains is what the next one goes on with."""
    found, wanted = ({path: x.shape for path, x in paths.flatten({'params': p.abstract.params, **p.abstract.collections}).items()}
                     for p in (plan, last))
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise RecipeError(f'{where}: {path} is {found.get(path, "absent")} here and {wanted.get(path, "absent")} in the last stage; '
                              'parameters must keep their shapes')


def intervals(config: Mapping[str, Any], units: Mapping[str, Any]) -> dict[str, int]:
    """How many steps lie between log lines, and between checkpoints."""
    return {key: max(1, durations.steps(config[key]['every'], what=f'{key}.every', **units)) for key in ('log', 'checkpoint')}


def example_shapes(datasets: pipeline.Datasets, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """{key: (shape, dtype)} of what crosses to the device, read off one example of each data set in a mixture."""
    found: dict[str, Any] = {}
    for member in datasets.members(name):
        stream = pipeline.Stream(pipeline.Draws([datasets], member, 1), 1, workers=0)
        batch = next(stream)
        stream.close()
        shapes = {key: (array.shape[1:], str(array.dtype)) for key, array in batch.items()}
        if found and shapes != found:
            raise RecipeError(f'data.{member}.ops: examples hold {shapes}, but those of the other members of data.{name} {found}; '
                              'one batch needs the same keys and shapes of all')
        found = shapes
    return found


def check_tokens(model: model_lib.Model, tokenizers: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """A text tower must know every id of its tokenizer, and pool where its tokenizer ends a text."""
    for name, make in model.towers.items():
        tower = make()
        key = config['towers'][name].get('tokenizer', name)
        if not hasattr(tower, 'vocab') or key not in tokenizers:
            continue
        tokenizer = tokenizers[key]
        if tokenizer.size > tower.vocab:
            raise RecipeError(f'towers.{name}.vocab: {tower.vocab} is less than the {tokenizer.size} ids of tokenizers.{key}')
        if getattr(tower, 'pool', '') == 'eot' and tower.eot_id != tokenizer.eot_id:
            raise RecipeError(f'towers.{name}.eot_id: {tower.eot_id}, but tokenizers.{key} ends texts with {tokenizer.eot_id}')


def evaluated_params(run: Run, state: State) -> Any:
    """The parameters that evaluators see: the run's own, or the EMA that ``eval_params`` names."""
    if not run.config['eval_params']:
        return state.params
    _, frozen = optim.split(state.params, run.plan.optimizer.trainable)
    return optim.merge(state.ema[run.config['eval_params']], frozen)


def dry_run(run: Run, differences: str) -> None:
    """Prints what would be run: config, difference from the recipe, parameters, one batch's shapes and first texts."""
    print(workdir.dump(run.config))
    print('\ndifference from the recipe:\n' + (differences or '(none)'))
    print('\n' + run.placed.table())
    for entry in start.opened(run.placed):
        print(f'start.{entry.key}: {entry.told(len(run.placed.variables()))}')
    print(f'\nmesh {dict(run.mesh.shape)} of {run.mesh.size} × {run.mesh.devices.flat[0].device_kind}; {run.plan.total_steps} steps of '
          f'{run.config["batch"]} examples')
    for stage, first in enumerate(run.first_steps):
        for kind, spec in run.config['kinds'].items():
            where = f' in stage {stage}, from step {first}' if stage else ''
            print(f'\none batch of {kind} (four examples of data.{spec["data"]}){where}:')
            print_batch(run, kind, stage)


def print_batch(run: Run, kind: str, stage: int) -> None:
    number = run.data.kinds.count(kind, run.first_steps[stage])
    draws = run.data.draws(kind, stage, run.first_steps, run.plan.total_steps)
    stream = pipeline.Stream(draws, run.config['batch'], number, slice(min(4, run.config['batch'])), workers=0)
    batch = next(stream)
    stream.close()
    for key, array in batch.items():
        print(f'  {key}: {array.dtype}{list(array.shape)} from {array.min()} to {array.max()}')
        if array.dtype == np.int32 and array.ndim == 2 and key in run.data.tokenizers:
            for ids in array:
                print(f'    {run.data.tokenizers[key].decode(ids)!r}')


# 2. The loop.

def train(run: Run, work: workdir.Workdir) -> None:
    """Initialises or restores, and trains to the end; evaluates, saves and reports on the way."""
    config, total = run.config, run.plan.total_steps
    writer = metrics_lib.Writer(work.path, **{k: config['log'][k] for k in ('tensorboard', 'wandb')}, config=config)
    checkpoints = checkpoint.Checkpoints(os.path.join(work.path, 'checkpoints'), config['checkpoint']['keep'],
                                         config['checkpoint']['keep_every'])
    every = intervals(config, run.plan.units)

    # Initialise on the devices, each parameter where it is stored; or restore into the same layout.
    first = 0
    if checkpoints.latest() is None:
        state = start.begin(run.placed)
    else:
        state, extra, first = checkpoints.restore(run.placed.state())
        check_data(run, extra['data'])
        check_positions(run, extra['positions'], first)
        log.info('resumed from step %d (%d examples seen)', first, extra['examples_seen'])
    writer.resume(first)

    steps = [{kind: placed.step(kind) for kind in config['kinds']} for placed in run.stages]
    flops = [{kind: placed.plan.model_flops(kind) for kind in config['kinds']} for placed in run.stages]
    peak = peak_flops(run.mesh.devices.flat[0].device_kind)
    progress = Progress(total, config['batch'], peak * run.mesh.size if peak else None)

    feeds = Feeds(run.data, run.first_steps, total, run.mesh, loader(config))
    stop, page = StopSignal(), Report(run, work)
    recent: list[tuple[int, Any, np.ndarray]] = []  # (step, metrics on the device, example ids), not yet looked at
    saved = first

    def save(step: int) -> None:
        nonlocal saved
        look(recent, saved)  # what is not finite is not saved
        seen = positions(run, step)
        checkpoints.save(step, state, {'examples_seen': sum(seen.values()), 'positions': seen, 'data': fingerprints(run)})
        saved = step

    def evaluate(step: int, final: bool = False) -> None:
        due = run.evaluators.due(step=step, final=final, **run.plan.units)
        if not due and not final:
            return
        if step == 0 and not config['eval_first']:
            due = [name for name in due if config['evals'][name].get('every') == 'start']
        if step == 0 and config['eval_first']:
            due = list(run.evaluators.built)
        with progress.paused():
            found = {}
            for name, value in run.evaluators.run(due, evaluated_params(run, state), state.collections, run.mesh, run.placed.stored):
                if isinstance(value, float):
                    found[name] = value
                elif jax.process_index() == 0:
                    figures.save(work.path, step, name, value)
            if found:
                writer.write(step, found)
                shown = (f'{name} {value:.4g}' for name, value in found.items() if not name.endswith(('_chance', 'seconds', '/n')))
                log.info('step %d: %s', step, '  '.join(shown))
            page.update()

    if first == 0:
        evaluate(0)
    for step in range(first, total):
        stage = stages_lib.at(run.first_steps, step)
        if config['profile'] and step == config['profile'][0]:
            jax.profiler.start_trace(os.path.join(work.path, 'profile'))
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
            kind, ids, batch = feeds.next(step, stage)
            state, metrics = steps[stage][kind](state, batch)
        done = step + 1
        if config['profile'] and done == config['profile'][1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        recent.append((step, metrics, ids))
        if len(recent) > 1:
            newest = recent.pop()
            look(recent, saved)  # one step late, so that the devices always have the next step to work on
            recent.append(newest)
        if done % every['log'] == 0 or done in (1, total):
            values = look(list(recent), saved)
            scalars = progress.measure(done, values['loss'], flops[stage][kind], feeds.wait_s)
            writer.write(done, {**values, **scalars, **feeds.scalars(), **peak_memory(run.mesh.local_devices)})
            log.info(progress.line(done))
            page.update(now=False)
        if step == first or step in run.first_steps:
            progress.start(done, feeds.wait_s)  # compiling is not training
        if done % every['checkpoint'] == 0 or done == total or stop.asked:
            save(done)
        evaluate(done, final=done == total)
        if stop.asked and done < total:
            checkpoints.wait()
            log.info('%s: saved step %d; the same command resumes', stop.asked, done)
            break
    feeds.close()
    checkpoints.close()
    writer.close()
    if first >= total:
        log.info('this run is complete (%d steps); nothing to do', total)
    stop.restore()
    if stop.asked:
        work.note(status='stopped')
    else:
        work.finish()
    page.update()


def fingerprints(run: Run) -> dict[str, str]:
    return {kind: '|'.join(dict.fromkeys(datasets.fingerprint(spec['data']) for datasets in run.data.stages))
            for kind, spec in run.config['kinds'].items()}


def check_data(run: Run, saved: Mapping[str, str]) -> None:
    """A position means nothing in other data: a resume on changed data is refused unless ``resume.allow`` matches 'data'."""
    for kind, fingerprint in fingerprints(run).items():
        if saved.get(kind) != fingerprint and not any(re.fullmatch(rule, 'data') for rule in run.config['resume']['allow']):
            raise RecipeError(f'data.{run.config["kinds"][kind]["data"]}: its source is not what it was when the checkpoint was saved; '
                              "give the old data, or resume.allow=('data',) to go on with these")


def positions(run: Run, step: int) -> dict[str, int]:
    """{kind: examples that the first ``step`` steps take}."""
    return {kind: run.data.kinds.count(kind, step) * run.config['batch'] for kind in run.config['kinds']}


def check_positions(run: Run, saved: Mapping[str, int], step: int) -> None:
    """Which examples a step sees follows from its number, so batch and kinds cannot change on the way, unless all may."""
    if dict(saved) != positions(run, step) and not any(re.fullmatch(rule, 'data') for rule in run.config['resume']['allow']):
        raise RecipeError(f'batch, kinds: the checkpoint of step {step} has seen {dict(saved)} examples; with these it would be '
                          f"{positions(run, step)}. Give the old ones, or resume.allow=('data',) to go on from there")


def loader(config: Mapping[str, Any]) -> dict[str, Any]:
    """How batches are made: no threads asked for means as many as there are cores, shared by the processes."""
    asked = dict(config['loader'])
    return asked | {'workers': asked['workers'] or max(1, os.cpu_count() // max(1, asked['processes']))}


def look(recent: list[tuple[int, Any, np.ndarray]], saved: int) -> dict[str, float]:
    """Fetches the metrics of steps taken; the last one's values. Stops the run at the first that is not finite."""
    values: dict[str, float] = {}
    while recent:
        step, metrics, ids = recent.pop(0)
        values = step_lib.present({key: float(value) for key, value in jax.device_get(metrics).items()})
        for key in ('loss', 'grad_norm'):
            if not math.isfinite(values[key]):
                shown = ', '.join(f'{source}:{index}' for source, index in ids[:8])
                raise FloatingPointError(f'{key} is {values[key]} at step {step + 1}; its examples (source:index) are {shown}'
                                         f'{", …" if len(ids) > 8 else ""}; the last good checkpoint is step {saved}')
    return values


class StopSignal:
    """SIGTERM and SIGINT ask for the state to be saved after the current step; a second one is not waited for."""

    def __init__(self):
        self.asked = ''
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore(self) -> None:
        """What these signals did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            self.restore()
            signal.raise_signal(number)
        self.asked = signal.Signals(number).name
        log.warning('%s: saving after this step', self.asked)


class Report:
    """lost.json and report.html, rewritten at most every ``seconds`` unless asked to. A report never stops a run."""

    def __init__(self, run: Run, work: workdir.Workdir, seconds: float = 30.):
        self.run, self.work, self.seconds, self.written = run, work, seconds, -math.inf

    def update(self, now: bool = True) -> None:
        if jax.process_index() != 0 or not now and time.monotonic() - self.written < self.seconds:
            return
        self.work.write_json('lost.json', self.run.data.lost())
        self.work.write_json('data.json', self.run.data.record())
        try:
            report.write(self.work.path)
        except Exception:  # noqa: BLE001  a picture is not worth a run
            log.warning('the report could not be written', exc_info=True)
        self.written = time.monotonic()


def main(config):
    """See this file's head."""
    config = recipe.resolve(config)
    if flags.FLAGS.dry_run:
        dry_run(prepare(config), recipe.differences(sys.argv[1:], config))
        return
    if not flags.FLAGS.workdir:
        raise RecipeError('--workdir: where the run is to be kept is not given')
    with workdir.open_workdir(flags.FLAGS.workdir, config, sys.orig_argv, config['resume']['allow']) as work:
        began = time.perf_counter()
        run = prepare(config)
        work.note(total_steps=run.plan.total_steps, recipe=recipe.name(sys.argv),
                  parameters=sum(x.size for x in jax.tree.leaves(run.plan.abstract.params)))
        work.describe_devices([d.device_kind for d in run.mesh.devices.flat])
        log.info('prepared in %.1f s', time.perf_counter() - began)
        try:
            with jax.set_mesh(run.mesh):
                train(run, work)
        except Exception as e:
            work.note(status='failed', error=f'{type(e).__name__}: {e}')
            Report(run, work).update()
            raise
        if table := report.summary(work.path):
            print(table, flush=True)
        log.info('report: %s', os.path.join(work.path, 'report.html'))


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'Where the run is kept: config, log, metrics, checkpoints, report.')
    flags.DEFINE_boolean('dry_run', False, 'Print config, parameter table and one batch; train nothing.')
    recipe.run(main)
