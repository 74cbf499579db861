"""Training speed beside open_clip's same model: one command, the same machine, turns about.

    python tools/bench_open_clip.py                                                   # 2 CPU cores, float32, small SigLIP
    python tools/bench_open_clip.py --ours remat=none --ours remat=full --ours remat=hidden+context    # settings of our towers
    python tools/bench_open_clip.py --device cuda --dtype bfloat16 --model siglip_b16 --batch 256,512,1024

What is timed is a whole training step (forward, loss, backward, AdamW) on random batches that are already where they are
needed. Every competitor is a process of its own, so that neither framework's threads, allocator or settings touch the
other's; they take turns, a few steps each, and only ratios within one turn count. open_clip's best of its variants
(eager, torch.compile), at its best batch, is what ours is divided by. Both get the same number of threads, AdamW in
its fused form, and mixed precision as each has it (float32 parameters; autocast in torch).

Needs torch, open_clip_torch and timm beside jax. Where torchvision is a CUDA build and torch is not, two operators that
torchvision asks for are declared first.
"""

import argparse
import importlib.util
import math
import multiprocessing
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Towers by name: (open_clip's own model name or '', our image tower, our text tower). Widths and depths of the named ones
# are checked by the number of parameters. GELU is the exact one, which open_clip's SigLIP models have.
_SMALL = dict(size='', width=192, heads=3)
MODELS = {
    'small': ('', dict(_SMALL, depth=6, patch=16, image=112), dict(_SMALL, depth=4, vocab=49_408, length=32, out_dim=192)),
    'siglip_b16': ('ViT-B-16-SigLIP', dict(size='B', patch=16, image=224), dict(size='B', vocab=32_000, length=64, out_dim=768)),
    'siglip_l16_256': ('ViT-L-16-SigLIP-256', dict(size='L', patch=16, image=256), dict(size='L', vocab=32_000, length=64, out_dim=1024)),
}
ADAMW = dict(lr=1e-4, b1=.9, b2=.95, weight_decay=.1)
_BATCHES = 4  # different random batches, in turn


def random_batches(image: int, length: int, vocab: int, batch: int):
    """[(uint8 [batch, image, image, 3], int32 [batch, length])], the same in every process."""
    import numpy as np
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (batch, image, image, 3)).astype(np.uint8),
             rng.integers(0, vocab, (batch, length)).astype(np.int32)) for _ in range(_BATCHES)]


# Competitors: ``make(options, setting, batch)`` -> (facts, step), where ``step()`` starts one training step and returns a
# function that waits for it and gives the loss.

def open_clip(options, setting: str, batch: int):
    """open_clip's model, SigLipLoss and torch's fused AdamW; ``setting``: 'eager' or 'compile'."""
    import torch
    declare_missing_operators(torch)
    import open_clip as library

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    if options.device == 'cuda':
        torch.cuda.set_per_process_memory_fraction(options.memory)
    name, image, text = MODELS[options.model]
    model = (library.create_model(name, pretrained=None) if name else small_siglip(library, image, text)).to(options.device).train()
    loss_of = library.loss.SigLipLoss()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=decayed), dict(params=others, weight_decay=0.)], lr=ADAMW['lr'],
                                  betas=(ADAMW['b1'], ADAMW['b2']), weight_decay=ADAMW['weight_decay'], fused=True)
    forward = torch.compile(model) if setting == 'compile' else model
    mixed = torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.dtype == 'bfloat16')
    length, vocab = model.context_length, model.vocab_size
    batches = [((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous().to(options.device),
                torch.from_numpy(ids).long().to(options.device))
               for pixels, ids in random_batches(image['image'], length, vocab, batch)]

    def step(count=[0]):
        pixels, ids = batches[count[0] % _BATCHES]
        count[0] += 1
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            image_features, text_features, scale, bias = forward(pixels, ids)
            loss = loss_of(image_features, text_features, scale, bias)
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # as open_clip's training loop
            model.logit_scale.clamp_(0, math.log(100))
        return lambda: wait(loss)

    def wait(loss) -> float:
        if options.device == 'cuda':
            torch.cuda.synchronize()  # the update too, not only the loss
        return loss.item()

    facts = dict(parameters=sum(p.numel() for p in model.parameters()),
                 software=f'torch {torch.__version__}, open_clip {library.__version__}')
    return facts, step


def declare_missing_operators(torch) -> None:
    """A CUDA build of torchvision beside a CPU build of torch lacks its operators, and refuses to be imported."""
    if torch.version.cuda is None:
        missing = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            missing.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        open_clip.keep = missing  # the declaration lives as long as this object


def small_siglip(library, image, text):
    """open_clip's SigLIP in another size: timm's ViT with attention pooling, a bidirectional text tower pooled last."""
    import timm

    def bench_vit(num_classes, global_pool, **_):  # what open_clip asks for; the rest is about pretrained weights
        return timm.create_model('vit_base_patch16_siglip_224', img_size=image['image'], embed_dim=image['width'], depth=image['depth'],
                                 num_heads=image['heads'], num_classes=num_classes, global_pool=global_pool)
    bench_vit.__module__ = timm.models.vision_transformer.__name__  # where timm looks for what belongs to a model
    timm.models.register_model(bench_vit)
    return library.model.CustomTextCLIP(
        embed_dim=image['width'], init_logit_scale=math.log(10), init_logit_bias=-10., output_dict=False,
        vision_cfg=dict(image_size=image['image'], timm_model_name='bench_vit', timm_pool='map', timm_proj='none'),
        text_cfg=dict(context_length=text['length'], vocab_size=text['vocab'], width=text['width'], heads=text['heads'],
                      layers=text['depth'], no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs=dict(eps=1e-6)))


def bigvlm(options, setting: str, batch: int):
    """Our step, as ``bigvlm.train`` runs it; ``setting``: fields of both towers, ``remat=full``."""
    os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'] = str(options.memory)
    if options.device == 'cpu':
        os.environ['JAX_PLATFORMS'] = 'cpu'
    import jax
    import numpy as np
    from bigvlm import blueprint, recipe
    from bigvlm.core import mesh as meshes

    plan = blueprint.make(recipe.resolve(recipe_of(options, setting, batch)), examples_per_epoch=10 ** 9)
    mesh = meshes.make_mesh(plan.config['mesh'], jax.devices()[:1])
    placed = plan.on(mesh)
    text = plan.config['towers']['text']
    with jax.set_mesh(mesh):
        state = placed.init()(np.uint32(0))
        ids = np.stack([np.zeros(batch, np.uint32), np.arange(batch, dtype=np.uint32)], axis=1)
        batches = [meshes.put_batch({'image': pixels, 'text': tokens, 'id': ids}, mesh, batch) for pixels, tokens in
                   random_batches(plan.config['towers']['image']['image'], text['length'], text['vocab'], batch)]
        compiled = placed.step('pairs').lower(state, batches[0]).compile()
    now = [state, 0]

    def step():
        now[0], metrics = compiled(now[0], batches[now[1] % _BATCHES])
        now[1] += 1
        return lambda: float(jax.block_until_ready((now[0], metrics))[1]['loss'])

    facts = dict(parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)), flops=plan.model_flops('pairs'),
                 matmul=matmul_rate(options.dtype), software=f'jax {jax.__version__} on {jax.devices()[0].device_kind}')
    return facts, step


def recipe_of(options, setting: str, batch: int):
    """A recipe of the model without data."""
    from bigvlm import recipe
    _, image, text = MODELS[options.model]
    config = recipe.new()
    config.batch, config.steps = batch, '100000 steps'
    fields = dict(dtype=options.dtype, activation='gelu')
    config.towers = dict(image=dict(name='vit', pool='map', **image, **fields), text=dict(name='text', pool='last', **text, **fields))
    config.objectives = dict(match=dict(name='sigmoid', temperature=10., bias=-10.))
    config.data = dict(train=dict())
    config.optim = dict(name='adamw', **ADAMW, decay=(('.*/(kernel|embedding|position|probe)', 1.), ('.*', 0.)))
    config.clamp = (('match/t', 0., math.log(100)),)
    recipe.complete(config)
    for item in filter(None, setting.split(',')):
        key, _, value = item.partition('=')
        for tower in config.towers.values():
            if key not in tower:
                raise recipe.RecipeError(recipe.unknown_key(f'--ours {key}', list(tower)))
            tower[key] = {'True': True, 'False': False}.get(value, value)
    return config


def matmul_rate(dtype: str, size: int = 4096) -> float:
    """FLOP/s of a large matrix product here: what a model could reach at most."""
    import jax
    x = jax.numpy.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(x))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        seconds.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(seconds)


# Taking turns.

class Competitor:
    """A process that makes one training step and then takes ``turn``s."""

    def __init__(self, make, options, setting: str, batch: int):
        self.name = f'{make.__name__} {setting}'.strip()
        self.batch, self.rates, self.loss = batch, [], float('nan')
        self.pipe, theirs = multiprocessing.get_context('spawn').Pipe()
        self.process = multiprocessing.get_context('spawn').Process(target=serve, args=(theirs, make, options, setting, batch), daemon=True)
        began = time.perf_counter()
        self.process.start()
        theirs.close()
        self.facts = self._answer()
        self.ready = time.perf_counter() - began

    def _answer(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = RuntimeError('the process ended')
        if isinstance(answer, Exception):
            raise answer
        return answer

    def turn(self, steps: int, count: bool) -> None:
        self.pipe.send(steps)
        seconds, self.loss = self._answer()
        if count:
            self.rates.append(steps * self.batch / seconds)

    def stop(self) -> None:
        self.pipe.send(0)
        self.process.join()

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def serve(pipe, make, options, setting: str, batch: int) -> None:
    """A competitor's process: makes itself ready, then answers numbers of steps with (seconds, last loss)."""
    try:
        if options.device == 'cpu':  # both frameworks take their number of threads from the cores that they may use
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
        facts, step = make(options, setting, batch)
        step()()  # compiles what compiles at the first call
        pipe.send(facts)
        while steps := pipe.recv():
            began = time.perf_counter()
            for _ in range(steps):
                wait = step()
            loss = wait()
            pipe.send((time.perf_counter() - began, loss))
    except Exception as error:  # whatever it is, the parent reports it
        pipe.send(RuntimeError(f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'))


def race(options, batch: int) -> list[Competitor]:
    """Every competitor that can run at this batch, with its rates; the first turn of each does not count."""
    entrants = [(open_clip, setting) for setting in options.open_clip] + [(bigvlm, setting) for setting in options.ours]
    competitors = []
    for make, setting in entrants:  # one after the other: each compiles alone
        try:
            competitors.append(Competitor(make, options, setting, batch))
            print(f'{competitors[-1].name}: ready after {competitors[-1].ready:.0f} s, {competitors[-1].facts["parameters"]:,} parameters, '
                  f'{competitors[-1].facts["software"]}', flush=True)
        except (RuntimeError, ValueError) as error:
            print(f'{make.__name__} {setting} at batch {batch}: {error}', flush=True)
    for turn in range(options.rounds + 1):
        for competitor in competitors:
            competitor.turn(options.steps, count=turn > 0)
    for competitor in competitors:
        competitor.stop()
    return competitors


def report(options, races: dict[int, list[Competitor]]) -> None:
    everybody = [c for competitors in races.values() for c in competitors]
    sizes = {c.facts['parameters'] for c in everybody}
    if len(sizes) > 1:
        sys.exit(f'these are not the same model: {sorted(sizes)} parameters')
    best = max((c for c in everybody if c.name.startswith('open_clip')), key=lambda c: c.rate, default=None)
    flops = {batch: next((c.facts['flops'] for c in competitors if 'flops' in c.facts), None) for batch, competitors in races.items()}
    peak = max((c.facts['matmul'] for c in everybody if 'matmul' in c.facts), default=None)
    print(f'\n{options.model}, {options.dtype}, {options.device}, {options.threads} CPU threads; '
          f'{options.rounds} turns of {options.steps} steps{"; 2 MiB pages" if options.huge_pages else ""}')
    if peak:
        print(f'matrix products of 4096: {peak / 1e12:.3g} TFLOP/s')
    print(f'{"":44} {"batch":>6} {"examples/s":>11} {"(min to max)":>18} {"TFLOP/s":>8} {"of matmul":>9} {"/ open_clip":>12} (min to max)')
    for c in everybody:
        ratio = ''
        if best is not None:
            each = [a / b for a, b in zip(c.rates, best.rates)]
            ratio = f'{statistics.median(each):12.3f} ({min(each):.3f} to {max(each):.3f})'
        rate = c.rate * flops[c.batch] / c.batch if flops[c.batch] else float('nan')
        print(f'{c.name:44} {c.batch:6} {c.rate:11.1f} {f"({min(c.rates):.1f} to {max(c.rates):.1f})":>18} {rate / 1e12:8.3g} '
              f'{rate / peak if peak else float("nan"):9.1%} {ratio}')


def options_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', choices=MODELS, default='small')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--batch', default='128', help='one, or several with commas: ours are divided by open_clip at its best')
    parser.add_argument('--threads', type=int, default=2, help='CPU cores that each may use')
    parser.add_argument('--steps', type=int, default=3, help='steps of one turn')
    parser.add_argument('--rounds', type=int, default=6, help='turns of each competitor that count')
    parser.add_argument('--open_clip', nargs='*', default=['eager', 'compile'], choices=('eager', 'compile'))
    parser.add_argument('--ours', action='append', help='fields of both towers, as remat=full; may be repeated; default: the towers\' own')
    parser.add_argument('--memory', type=float, help="the part of a GPU's memory that each may use; default: equal parts of nine tenths")
    parser.add_argument('--huge_pages', action='store_true', help='for every competitor: glibc asks for 2 MiB pages')
    options = parser.parse_args(argv)
    options.ours = options.ours or ['']
    options.memory = options.memory or .9 / (len(options.ours) + len(options.open_clip))
    return options


def main(argv=None):
    options = options_of(argv)
    missing = [name for name in ('torch', 'open_clip', 'timm') if importlib.util.find_spec(name) is None]
    if missing and options.open_clip:
        sys.exit(f'{", ".join(missing)} not installed: pip install torch, and pip install --no-deps torchvision open_clip_torch timm '
                 'with ftfy, regex and wcwidth; or --open_clip with nothing after it, for ours alone')
    if options.huge_pages:
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'  # read when a process starts, so it is the competitors' alone
    report(options, {batch: race(options, batch) for batch in map(int, options.batch.split(','))})


if __name__ == '__main__':
    main()
