"""Small models of open_clip, and some steps of training of them by open_clip's own loop and by a recipe of ours.

B examples, H×W pixels, C colours, L tokens.
"""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch_models

from bigvlm.core import paths
from bigvlm.interop import open_clip as ours_of, timm as our_timm
from bigvlm.interop.description import Description
from bigvlm.state import State
from tests.interop import their_modules

STEPS, WARMUP, RATE, DECAY, CLIP = 20, 2, 1e-3, .2, 40.
BATCH, CONCEPTS, SIDE, LENGTH, VOCAB = 16, 12, 64, 8, 40
LARGEST = math.log(100)  # that open_clip lets a temperature become
TIMM = 'vit_base_patch16_siglip_224'
TEXT = dict(context_length=LENGTH, vocab_size=VOCAB, width=32, heads=2, layers=2)
CONFIGS = {  # B/32 and B/16-SigLIP, narrow and shallow
    'clip': dict(embed_dim=24, quick_gelu=True, text_cfg=TEXT,
                 vision_cfg=dict(image_size=SIDE, patch_size=32, width=32, layers=2, head_width=16)),
    'siglip': dict(embed_dim=32, custom_text=True, init_logit_bias=-10,
                   vision_cfg=dict(image_size=SIDE, timm_model_name=TIMM, timm_pool='map', timm_proj='none'),
                   text_cfg=dict(TEXT, no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6))),
}


class Run(NamedTuple):
    """Of each step: the loss, the norm of the whole gradient before it is clipped, and the log-temperature after the step; and
    {our path: array} before and after all."""
    losses: np.ndarray
    norms: np.ndarray
    scales: np.ndarray
    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]


def made(name: str) -> tuple[Any, Description]:
    """(their model with random weights, ours). The temperature begins above what it may be, as nothing but the clamp would lower it
    so far in one step."""
    open_clip, timm = torch_models.load('open_clip'), torch_models.load('timm')
    import torch
    config = dict(CONFIGS[name])
    create, small = timm.create_model, dict(img_size=SIDE, patch_size=32, embed_dim=32, depth=2, num_heads=2)
    with pytest.MonkeyPatch.context() as patch:  # a small model under timm's name of a large one, there and here
        patch.setattr(timm, 'create_model', lambda name, **given: create(name, **given, **small))
        patch.setitem(our_timm.MODELS, TIMM, our_timm.MODELS[TIMM] | dict(image=SIDE, patch=32, width=32, depth=2, heads=2, mlp_dim=128))
        description = ours_of.describe(dict(model_cfg=config, preprocess_cfg=dict(mean=[0.] * 3, std=[1.] * 3)))
        custom = config.pop('custom_text', False)
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(output_dict=True, **config)
    with torch.no_grad():
        their_modules.randomise(model)
        model.logit_scale.fill_(LARGEST + .02)
        if model.logit_bias is not None:
            model.logit_bias.fill_(-10.)
    return model, description


def batches(count: int = STEPS, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Every image shows one of a few patterns under noise, and a word of its text names it. Pixels are normalised already."""
    rng = np.random.default_rng(seed)
    pattern_NHWC = rng.normal(size=(CONCEPTS, SIDE, SIDE, 3))
    names = VOCAB - 1 - CONCEPTS  # the first of them; the last id of all ends a text
    found = []
    for _ in range(count):
        concept_B = rng.permutation(BATCH) % CONCEPTS
        image_BHWC = pattern_NHWC[concept_B] + .5 * rng.normal(size=(BATCH, SIDE, SIDE, 3))
        text_BL, end_B = rng.integers(1, names, (BATCH, LENGTH)), rng.integers(3, LENGTH, BATCH)
        text_BL[:, 1] = names + concept_B
        text_BL[np.arange(BATCH), end_B] = VOCAB - 1
        text_BL[np.arange(LENGTH) > end_B[:, None]] = 0
        found.append(dict(image=image_BHWC.astype(np.float32), text=text_BL.astype(np.int32),
                          id=np.stack([np.zeros(BATCH), np.arange(BATCH)], axis=1).astype(np.uint32)))
    return found


def optimizer_of(model: Any) -> Any:
    """AdamW as open_clip_train's main makes it: vectors, numbers and what is named a norm, a bias or a temperature do not decay."""
    import torch
    kept = {name for name, p in model.named_parameters() if p.ndim < 2 or any(part in name for part in ('bn', 'ln', 'bias', 'logit_scale'))}
    groups = [dict(params=[p for name, p in model.named_parameters() if (name in kept) == plain], weight_decay=0. if plain else DECAY)
              for plain in (True, False)]
    return torch.optim.AdamW(groups, lr=RATE, betas=(.9, .98), eps=1e-6)


class Loader(list):
    """Of (images, texts), with what their loop asks of one."""

    def __init__(self, data: Sequence[Mapping[str, np.ndarray]], accumulate: int, dtype: Any):
        import torch
        super().__init__((torch.tensor(np.einsum('bhwc->bchw', batch['image'][rows])).to(dtype), torch.tensor(batch['text'][rows]).long())
                         for batch in data for rows in np.split(np.arange(BATCH), accumulate))
        self.num_batches, self.num_samples = len(self), len(data) * BATCH


def theirs(name: str, dtype: str, *, accumulate: int = 1, once: bool = False, exactly: bool = False) -> Run:
    """open_clip_train's loop; ``accumulate`` is its --accum-freq. ``once``: the gradients of temperature and bias, which every part
    of an accumulated batch gives again whole, are counted once. ``exactly``: gradients are clipped to the limit, where PyTorch divides
    by 1e-6 more than the norm."""
    scheduler, train = (torch_models.load(f'open_clip_train.{part}') for part in ('scheduler', 'train'))
    import torch
    (model, description), data = made(name), batches()
    model.to(getattr(torch, dtype))
    before = their_modules.arrays(description, their_modules.state(model))
    open_clip = torch_models.load('open_clip')
    loss = open_clip.loss.SigLipLoss() if 'siglip' in name else open_clip.ClipLoss()
    optimizer, losses, norms, scales = optimizer_of(model), [], [], []
    if once:
        for p in filter(lambda p: p is not None, (model.logit_scale, model.logit_bias)):
            p.register_hook(lambda gradient: gradient / accumulate)

    def recorded(**given):
        found = loss(**given)
        losses.append(found['contrastive_loss'].item())
        return found

    def rate(step, adjust=scheduler.cosine_lr(optimizer, RATE, WARMUP, STEPS)):
        if step and len(scales) < step:
            scales.append(model.logit_scale.item())
        return adjust(step)
    clip_gradient = torch.nn.utils.clip_grad_norm_

    def clipped(parameters, limit, **kwargs):
        parameters = list(parameters)
        if exactly:
            limit = limit * (1 + 1e-6 / torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())
        norms.append(clip_gradient(parameters, limit, **kwargs).item())
    args = types.SimpleNamespace(
        device='cpu', precision='fp32', distill=False, accum_freq=accumulate, skip_scheduler=False, grad_clip_norm=CLIP, horovod=False,
        rank=0, local_rank=0, log_local=False, world_size=1, log_every_n_steps=10 ** 9, batch_size=BATCH // accumulate, wandb=False)
    source = types.SimpleNamespace(dataloader=Loader(data, accumulate, getattr(torch, dtype)), set_epoch=lambda epoch: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more wait for each other longer than such small products take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, 'clip_grad_norm_', clipped)
        train.train_one_epoch(model, dict(train=source), recorded, 0, optimizer, None, rate, None, args)
    torch.set_num_threads(threads)
    scales.append(model.logit_scale.item())
    after = their_modules.arrays(description, their_modules.state(model))
    return Run(np.array(losses[::accumulate]), np.array(norms), np.array(scales), before, after)


def recipe(description: Description, dtype: str, micro: int) -> Mapping[str, Any]:
    """Ours for the same run: all that has two dimensions in PyTorch decays, positions, their class token's and the probe too."""
    towers = {name: dict(spec, dtype=dtype) for name, spec in description.config['towers'].items()}
    decayed = '|'.join(('kernel', 'embedding', 'position', 'class_position') + ('probe',) * (towers['image']['pool'] == 'map'))
    optim = dict(name='adamw', lr=RATE, b1=.9, b2=.98, eps=1e-6, mu_dtype=dtype, weight_decay=DECAY, clip=CLIP,
                 schedule=dict(name='cosine', warmup=f'{WARMUP} steps'), decay=((f'.*/({decayed})', 1.), ('.*', 0.)))
    return tiny.config(towers=towers, objectives=description.config['objectives'], batch=BATCH, micro=micro, steps=f'{STEPS} steps',
                       optim=optim, clamp=(('match/t', 0., LARGEST),))


def ours(name: str, dtype: str, *, micro: int = 1, devices: int = 1) -> Run:
    """The compiled step of the recipe, from the same weights, on so many devices."""
    (model, description), data = made(name), batches()
    before = {path: x.astype(dtype) for path, x in their_modules.arrays(description, their_modules.state(model)).items()}
    losses, norms, scales = [], [], []
    with jax.enable_x64(dtype == 'float64'):
        setting = tiny.Setting(recipe(description, dtype, micro), dict(data=devices))
        params = {path: jnp.asarray(x) for path, x in before.items()}
        state = State(jnp.zeros((), jnp.int32), paths.unflatten(params), setting.plan.optimizer.tx.init(params), {}, {}, jax.random.key(0))
        with jax.set_mesh(setting.mesh):
            state = jax.device_put(state, setting.placed.shardings)
            step = setting.step().lower(state, setting.put(data[0])).compile({'xla_backend_optimization_level': 0})
            for batch in data:
                state, metrics = step(state, setting.put(batch))
                losses.append(float(metrics['loss']))
                norms.append(float(metrics['grad_norm']))
                scales.append(float(state.params['match']['t']))
            after = jax.device_get(paths.flatten(state.params))
    return Run(np.array(losses), np.array(norms), np.array(scales), before, after)
