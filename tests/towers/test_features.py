"""For probes, image towers also give what they had before their own projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.towers.efficientnet import EfficientNet
from bigvlm.towers.resnet import ResNet
from bigvlm.towers.swin import Swin

TOWERS = [(ResNet(size='', depths=(1, 1), width=8, image=32, bottleneck=False, dtype='float32', out_dim=5), 16),
          (EfficientNet(size='', wider=.25, deeper=.25, image=32, dtype='float32', out_dim=5), 320),
          (Swin(size='', width=32, depths=(2, 2), window=2, image=32, patch=4, dtype='float32', out_dim=5), 64)]


@pytest.mark.parametrize('tower, width', TOWERS, ids=lambda x: type(x).__name__)
def test_pooled_is_their_projection(tower, width):
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found, variables = jax.jit(lambda: tower.init_with_output(jax.random.key(0), image_BHWC))()
    assert found.features_BD.shape == (2, width) and found.pooled_BD.shape == (2, 5)
    out = variables['params']['out']
    np.testing.assert_allclose(found.pooled_BD, jnp.dot(found.features_BD, out['kernel'], precision='highest') + out['bias'], atol=1e-5)
