"""Each tower as a StableHLO artefact (jax.export): run without this code, on the platforms and batch sizes that it was made for.

A folder has, for 'image' and 'text', ``SIDE.b.stablehlo`` (any batch) and ``SIDE.N.stablehlo`` (batches of N), which take
(parameters, uint8 images [B, H, W, 3] or int32 tokens [B, L]) and give unit-norm embeddings [B, D]; ``params.safetensors`` with
those parameters by their paths; and ``artefact.json``.

    from jax import export
    from safetensors.numpy import load_file
    image = export.deserialize(open('image.b.stablehlo', 'rb').read())
    image.call(load_file('params.safetensors'), images_BHWC)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bigvlm.core import paths
from bigvlm.data.cache import fresh
from bigvlm.interop.weights import save_weights

PLATFORMS = ('cpu', 'cuda', 'tpu')
BATCH = 8


def write(folder: Path, model: Any, batch: int = BATCH, platforms: Sequence[str] = PLATFORMS) -> list[str]:
    """``model``: a ``loaded.Model``. Attention is XLA's plain one: kernels of one platform would not run on the others."""
    folder.mkdir(parents=True, exist_ok=True)
    stats = paths.flatten(model.collections.get('batch_stats', {}))
    flat = paths.flatten(model.params) | {f'batch_stats/{path}': x for path, x in stats.items()}
    module, part = model.plain(), model.module.objectives[model.objective]()
    abstract = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()}
    about: dict[str, Any] = dict(checkpoint=model.where, platforms=list(platforms), towers={})
    inputs = {'image': (part.image, (*model.prepare(np.zeros((64, 64, 3), np.uint8)).shape,), jnp.uint8),
              'text': (part.text, (model.length,), jnp.int32)}
    for side, (key, shape, dtype) in inputs.items():
        def embed(flat, rows, key=key, side=side):
            stats = {path.removeprefix('batch_stats/'): x for path, x in flat.items() if path.startswith('batch_stats/')}
            params = {path: x for path, x in flat.items() if not path.startswith('batch_stats/')}
            variables = {'params': paths.unflatten(params)} | ({'batch_stats': paths.unflatten(stats)} if stats else {})
            return module.apply(variables, {key: rows}, model.objective, method='embed')[f'{side}_BD']
        for name in ('b', str(batch)):
            (size,) = export.symbolic_shape(name)
            made = export.export(jax.jit(embed), platforms=platforms)(abstract, jax.ShapeDtypeStruct((size, *shape), dtype))
            with fresh(folder / f'{side}.{name}.stablehlo') as part_file:
                part_file.write_bytes(made.serialize())
        about['towers'][side] = dict(input=[np.dtype(dtype).name, *shape], width=int(made.out_avals[0].shape[-1]))
    save_weights(folder, flat.items(), 'params.safetensors')
    (folder / 'artefact.json').write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')
    return []
