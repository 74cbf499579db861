"""What a run needs before a chip is rented: compiles the real step for a named group of accelerators, on any machine.

    python tools/plan.py --config configs/siglip_b16.py --topology v5e:16x16 [--config.key=value ...]
    python tools/plan.py --config configs/clip_b32.py --topology h100:32 --examples_per_epoch 4e8 --price 2.5
    python tools/plan.py --config configs/siglip_b16.py --topology h200:1 --search --limit 10

Topologies: v4:NxNxN v5e:NxN v5p:NxNxN v6e:NxN tpu7x:NxNxN (with --slices) h100:N h200:N. It needs no accelerator; for
TPUs it needs libtpu (pip install -e '.[plan]'), for GPUs jax's CUDA wheels (pip install -e '.[cuda]').
"""

import json
import logging
import os
import sys

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm.plan import environment  # noqa: E402

os.environ.update(environment.variables(os.environ))  # before jax is imported

from bigvlm import recipe  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.plan import plan as plan_lib, roofline, search, text, topology as topology_lib  # noqa: E402


_TOPOLOGY = flags.DEFINE_string('topology', None, 'What to compile for: v5e:16x16, h100:32, …')
_SLICES = flags.DEFINE_integer('slices', 1, "TPU slices, joined by the data centre's network.", lower_bound=1)
_KIND = flags.DEFINE_string('kind', None, 'Which kind of batches; the first by default.')
_EPOCH = flags.DEFINE_float('examples_per_epoch', None, 'Size of the training set, for recipes that count in epochs.')
_EFFICIENCY = flags.DEFINE_float('efficiency', roofline.EFFICIENCY, 'Fraction of the peak that products are assumed to reach.', .01, 1.)
_PRICE = flags.DEFINE_float('price', None, 'Of one chip and hour.', lower_bound=0.)
_SEARCH = flags.DEFINE_bool('search', False, 'Try micro-batches, rematerialisation and meshes, and rank what fits.')
_LIMIT = flags.DEFINE_integer('limit', 12, 'Compiles of a search.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'Write everything to this file; - is standard output.')


def main(config):
    config = recipe.resolve(config)
    if _TOPOLOGY.value is None:
        raise RecipeError('--topology: which accelerators? give v5e:16x16, h100:32, …')
    topology = topology_lib.get(_TOPOLOGY.value, _SLICES.value)
    given = dict(kind=_KIND.value, examples_per_epoch=_EPOCH.value and int(_EPOCH.value), efficiency=_EFFICIENCY.value,
                 price=_PRICE.value)
    shown = sys.stderr if _JSON.value == '-' else sys.stdout   # JSON on standard output stands alone
    for handler in logging.getLogger('bigvlm').handlers:
        handler.setStream(shown)
    if _SEARCH.value:
        found = search.search(config, topology, limit=_LIMIT.value, say=lambda line: print(line, file=shown, flush=True), **given)
        print(search.report(found), file=shown)
        result = [plan.as_dict() for plan in found]
    else:
        plan = plan_lib.plan(config, topology, **given)
        print(text.report(plan), file=shown)
        result = plan.as_dict()
    if _JSON.value == '-':
        json.dump(result, sys.stdout, indent=1)
    elif _JSON.value:
        with open(_JSON.value, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=1)


if __name__ == '__main__':
    recipe.run(main)
