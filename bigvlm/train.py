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

from bigvlm import blueprint, checkpoint, figures, metrics as metrics_lib, model as model_lib, optim, recipe, report, workdir
from bigvlm.blueprint import Blueprint, Placed
from bigvlm.core import durations, mesh as mesh_lib
from bigvlm.core.devices import peak_flops
from bigvlm.core.kinds import Kinds
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.evaluate import Datasets, Evaluators
from bigvlm.progress import Progress
from bigvlm.state import State

log = logging.getLogger('bigvlm.train')


@dataclasses.dataclass(frozen=True)
class Run:
    """What a recipe amounts to, with nothing allocated yet: its blueprint on a mesh, its data and its evaluators."""
    placed: Placed
    datasets: Datasets
    tokenizers: Mapping[str, Any]
    evaluators: Evaluators
    kinds: Kinds

    @property
    def plan(self) -> Blueprint:
        return self.placed.plan

    @property
    def config(self) -> Mapping[str, Any]:
        return self.placed.plan.config

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.placed.mesh


# 1. Abstract before concrete: parts, shapes, layouts. Whatever is wrong with a recipe is said here.

def prepare(config: Mapping[str, Any]) -> Run:
    """Builds and checks everything but arrays. Devices are first asked about (not used) where the mesh is made."""
    model = model_lib.from_config(config)
    kinds = Kinds({kind: spec['weight'] for kind, spec in config['kinds'].items()}, config['seed'])
    tokenizers = pipeline.build_tokenizers(config['tokenizers'], config['data'])
    datasets = Datasets(config, tokenizers)
    shapes = {kind: example_shapes(datasets(spec['data'])) for kind, spec in config['kinds'].items()}
    first = next(iter(config['kinds'].values()))['data']
    plan = blueprint.make(config, model=model, shapes=shapes, examples_per_epoch=len(datasets(first)))
    check_tokens(model, tokenizers, config)
    evaluators = Evaluators(config, model, datasets, tokenizers)
    evaluators.check(plan.abstract.params, plan.abstract.collections, plan.units)
    intervals(config, plan.units)
    return Run(plan.on(mesh_lib.make_mesh(config['mesh'])), datasets, tokenizers, evaluators, kinds)


def intervals(config: Mapping[str, Any], units: Mapping[str, Any]) -> dict[str, int]:
    """How many steps lie between log lines, and between checkpoints."""
    return {key: max(1, durations.steps(config[key]['every'], what=f'{key}.every', **units)) for key in ('log', 'checkpoint')}


def example_shapes(dataset: pipeline.Dataset) -> dict[str, tuple[tuple[int, ...], str]]:
    """{key: (shape, dtype)} of what crosses to the device, read off one example."""
    stream = pipeline.Stream(dataset, 1, workers=0)
    batch = next(stream)
    stream.close()
    return {key: (array.shape[1:], str(array.dtype)) for key, array in batch.items()}


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
    print(f'\nmesh {dict(run.mesh.shape)} of {run.mesh.size} × {run.mesh.devices.flat[0].device_kind}; {run.plan.total_steps} steps of '
          f'{run.config["batch"]} examples')
    for kind, spec in run.config['kinds'].items():
        stream = pipeline.Stream(run.datasets(spec['data']), min(4, run.config['batch']), workers=0)
        batch = next(stream)
        stream.close()
        print(f'\none batch of {kind} (the first {min(4, run.config["batch"])} examples of data.{spec["data"]}):')
        for key, array in batch.items():
            print(f'  {key}: {array.dtype}{list(array.shape)} from {array.min()} to {array.max()}')
            if array.dtype == np.int32 and array.ndim == 2 and key in run.tokenizers:
                for ids in array:
                    print(f'    {run.tokenizers[key].decode(ids)!r}')


# 2. The loop.

def train(run: Run, work: workdir.Workdir) -> None:
    """Initialises or restores, and trains to the end; evaluates, saves and reports on the way."""
    config, total = run.config, run.plan.total_steps
    writer = metrics_lib.Writer(work.path, **{k: config['log'][k] for k in ('tensorboard', 'wandb')}, config=config)
    checkpoints = checkpoint.Checkpoints(os.path.join(work.path, 'checkpoints'), config['checkpoint']['keep'],
                                         config['checkpoint']['keep_every'])
    every = intervals(config, run.plan.units)

    # Initialise on the devices, each parameter where it is stored; or restore into the same layout.
    first, positions = 0, dict.fromkeys(config['kinds'], 0)
    if checkpoints.latest() is None:
        state = run.placed.init()(np.uint32(config['seed']))
    else:
        state, extra, first = checkpoints.restore(run.placed.state())
        check_data(run, extra['data'])
        positions = extra['positions']
        log.info('resumed from step %d (%d examples seen)', first, extra['examples_seen'])
    writer.resume(first)

    steps = {kind: run.placed.step(kind) for kind in config['kinds']}
    flops = {kind: run.plan.model_flops(kind) for kind in config['kinds']}
    peak = peak_flops(run.mesh.devices.flat[0].device_kind)
    progress = Progress(total, config['batch'], peak * run.mesh.size if peak else None)

    streams = open_streams(run, positions)
    stop, page = StopSignal(), Report(run, work)
    recent: list[tuple[int, Any, np.ndarray]] = []  # (step, metrics on the device, example ids), not yet looked at
    saved = first

    def save(step: int) -> None:
        nonlocal saved
        look(recent, saved)  # what is not finite is not saved
        positions = {kind: stream.position for kind, stream in streams.items()}
        checkpoints.save(step, state, {'examples_seen': sum(positions.values()), 'positions': positions, 'data': fingerprints(run)})
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
        kind = run.kinds.at(step)
        if config['profile'] and step == config['profile'][0]:
            jax.profiler.start_trace(os.path.join(work.path, 'profile'))
        with jax.profiler.StepTraceAnnotation('train', step_num=step):
            local = next(streams[kind])
            batch = mesh_lib.put_batch(local, run.mesh, config['batch'])
            state, metrics = steps[kind](state, batch)
        done = step + 1
        if config['profile'] and done == config['profile'][1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        recent.append((step, metrics, local['id']))
        if len(recent) > 1:
            newest = recent.pop()
            look(recent, saved)  # one step late, so that the devices always have the next step to work on
            recent.append(newest)
        if done % every['log'] == 0 or done in (1, total):
            values = look(list(recent), saved)
            wait = sum(stream.wait_s for stream in streams.values())
            scalars = progress.measure(done, values['loss'], flops[kind], wait)
            writer.write(done, {**values, **scalars})
            log.info(progress.line(done))
            page.update(now=False)
        if done == first + 1:
            progress.start(done, sum(stream.wait_s for stream in streams.values()))  # compiling is not training
        if done % every['checkpoint'] == 0 or done == total or stop.asked:
            save(done)
        evaluate(done, final=done == total)
        if stop.asked and done < total:
            checkpoints.wait()
            log.info('%s: saved step %d; the same command resumes', stop.asked, done)
            break
    for stream in streams.values():
        stream.close()
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
    return {kind: run.datasets(spec['data']).fingerprint for kind, spec in run.config['kinds'].items()}


def check_data(run: Run, saved: Mapping[str, str]) -> None:
    """A position means nothing in other data: a resume on changed data is refused unless ``resume.allow`` matches 'data'."""
    for kind, fingerprint in fingerprints(run).items():
        if saved.get(kind) != fingerprint and not any(re.fullmatch(rule, 'data') for rule in run.config['resume']['allow']):
            raise RecipeError(f'data.{run.config["kinds"][kind]["data"]}: its source is not what it was when the checkpoint was saved; '
                              "give the old data, or resume.allow=('data',) to go on with these")


def open_streams(run: Run, positions: Mapping[str, int]) -> dict[str, pipeline.Stream]:
    """This process's batches of every kind, from ``positions``: examples of each kind seen so far."""
    config = run.config
    rows = mesh_lib.process_rows(run.mesh, config['batch'])
    workers = config['loader']['workers'] or os.cpu_count()
    return {kind: pipeline.Stream(run.datasets(spec['data']), config['batch'], positions.get(kind, 0), rows, workers,
                                  config['loader']['prefetch'])
            for kind, spec in config['kinds'].items()}


def look(recent: list[tuple[int, Any, np.ndarray]], saved: int) -> dict[str, float]:
    """Fetches the metrics of steps taken; the last one's values. Stops the run at the first that is not finite."""
    values: dict[str, float] = {}
    while recent:
        step, metrics, ids = recent.pop(0)
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
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
        self.work.write_json('lost.json', self.run.datasets.lost())
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
        work.note(total_steps=run.plan.total_steps, recipe=recipe.name(sys.argv))
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
