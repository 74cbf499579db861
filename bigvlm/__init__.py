"""bigvlm: pre-training of vision-language models in JAX/Flax, from a laptop to TPU pods and GPU clusters.

``bigvlm.load(checkpoint)`` gives a trained model for use; see ``bigvlm.loaded``.
"""

import importlib

__version__ = '0.1.0'


def __getattr__(name: str):
    if name == 'load':  # only then: importing bigvlm stays cheap
        return importlib.import_module('bigvlm.loaded').load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
