"""A small CLIP as a run leaves it, for tests of what is done with trained models."""

import json

import jax
import numpy as np
import pytest

import bigvlm
from bigvlm import blueprint, checkpoint, recipe, workdir
from bigvlm.core import mesh as mesh_lib

MERGES = ('#version: 0.2', 'r e', 're d</w>', 'b l', 'bl u', 'blu e</w>', 'd o', 'do g</w>', 'c a', 'ca t</w>')


@pytest.fixture(scope='session')
def run(tmp_path_factory):
    """The folder of a run whose parameters are all random, at step 7."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'merges.txt').write_text('\n'.join(MERGES) + '\n')
    vocab = 512 + len(MERGES) - 1 + 2
    c, small = recipe.new(), dict(size='', width=32, depth=2, heads=2, out_dim=16, activation='quick_gelu', out_bias=False,
                                  init_scheme='clip', norm_eps=1e-5, dtype='float32')
    c.about = dict(paper='A paper, arXiv 0000.00000')
    c.batch, c.steps = 8, '10 steps'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=str(folder / 'merges.txt')))
    c.towers = dict(image=dict(name='vit', image=32, patch=8, pool='cls', pre_norm=True, patch_bias=False, **small),
                    text=dict(name='text', vocab=vocab, length=12, causal=True, pool='eot', eot_id=vocab - 1, pad_id=0, **small))
    c.objectives = dict(contrast=dict(name='contrastive', image_tower='', text_tower=''))
    ops = (dict(name='decode'), dict(name='resize', size=32, rounding='floor'))
    pictures = dict(source=dict(name='folder', root=str(folder)), ops=ops)
    c.data = dict(train=pictures, val=pictures)
    c.evals = dict(zero_shot=dict(name='zero_shot', data='val', length=12))
    c.optim = dict(name='adamw', lr=1e-3, schedule=dict(name='constant'))
    config = recipe.resolve(recipe.complete(c))
    placed = blueprint.make(config, examples_per_epoch=100).on(mesh_lib.make_mesh({'data': 1}, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    with jax.set_mesh(placed.mesh):
        state = placed.init()(np.uint32(0))
        state = state.replace(params=jax.tree.map(lambda x: x + .05 * rng.normal(size=x.shape).astype(x.dtype), state.params))
        checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
        checkpoints.save(7, state, {})
        checkpoints.close()
    (folder / 'config.json').write_text(workdir.dump(config), encoding='utf-8')
    (folder / 'run.json').write_text(json.dumps(dict(status='finished', recipe='small_clip')))
    record = dict(source='a folder', examples=10, unusable=1, surviving=9, fingerprint='ab12')
    (folder / 'data.json').write_text(json.dumps(dict(train=record)))
    lines = [{'step': 5, 'zero_shot/top1': .2, 'zero_shot/top5': .77}, {'step': 7, 'loss': 1.}, {'step': 7, 'zero_shot/top1': .4321, 'zero_shot/top1_chance': .1}]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return folder


@pytest.fixture
def one_device(monkeypatch):
    """Models are loaded onto one device, not onto all eight."""
    device = jax.devices()[0]
    monkeypatch.setattr(jax, 'devices', lambda *_: [device])


@pytest.fixture(scope='session')
def model(run):
    """The run's model on one device."""
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[0]
        patch.setattr(jax, 'devices', lambda *_: [device])
        return bigvlm.load(str(run))
