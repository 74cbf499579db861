"""The environment in which libtpu compiles without a TPU, several processes at a time; set before anything loads it."""

import os

from bigvlm.plan import environment

os.environ.update(environment.variables(os.environ))
