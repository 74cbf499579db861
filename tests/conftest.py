"""Eight virtual CPU devices, set before jax is imported; ``toys`` (parts of a user's own) importable by dotted name."""

import importlib.util
import os
import sys

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
sys.path[:0] = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]


def pytest_collection_modifyitems(items):
    """Tests that compile for TPUs need their compiler; .ci/run installs it."""
    if importlib.util.find_spec('libtpu') is None:
        for item in items:
            if item.get_closest_marker('aot'):
                item.add_marker(pytest.mark.skip(reason="libtpu is not installed (pip install -e '.[plan]')"))
