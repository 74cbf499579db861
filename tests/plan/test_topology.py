import importlib.util
import subprocess
import sys

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.plan import environment, gpu, topology


def test_names():
    assert topology.parse('v5e:16x16') == ('v5e', (16, 16))
    assert topology.parse('tpu7x:4x4x4') == ('tpu7x', (4, 4, 4))
    assert topology.parse('h100:32') == ('h100', (32,))


@pytest.mark.parametrize('name', ['v5e', 'v5e:16', 'v5e:4x4x4', 'v5p:4x4', 'v9:2x2', 'h100:2x4', 'h100:0', 'cpu:8', 'v5e:4x', ''])
def test_names_that_are_none(name):
    with pytest.raises(RecipeError, match='--topology: .*valid: v4:NxNxN, v5e:NxN, .*h100:N') as error:
        topology.parse(name)
    assert '\n' not in str(error.value)


def test_a_missing_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(RecipeError, match=r"libtpu, which is not installed: pip install -e '\.\[plan\]'"):
        topology.get('v5e:2x2')
    with pytest.raises(RecipeError, match=r"CUDA wheels, which are not installed: pip install -e '\.\[cuda\]'"):
        topology.get('h100:8')


def test_sizes_that_cannot_be(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    with pytest.raises(RecipeError, match='12 GPUs do not fill nodes of 8'):
        topology.get('h100:12')
    with pytest.raises(RecipeError, match='--slices: GPUs have no slices'):
        topology.get('h100:8', slices=2)


@pytest.mark.aot
@pytest.mark.parametrize('name, slices, devices, kind', [
    ('v5e:2x2', 1, 4, 'TPU v5 lite'), ('v5e:2x2', 2, 8, 'TPU v5 lite'), ('v5e:1x1', 1, 1, 'TPU v5 lite'),
    ('v5e:16x16', 1, 256, 'TPU v5 lite'),
    ('v4:2x2x2', 1, 8, 'TPU v4'), ('v5p:4x4x4', 1, 64, 'TPU v5'), ('v6e:4x4', 1, 16, 'TPU v6 lite'), ('tpu7x:2x2x1', 1, 8, 'TPU7x')])
def test_tpus(name, slices, devices, kind):
    found = topology.get(name, slices)
    assert len(found.devices) == devices and {d.device_kind for d in found.devices} == {kind}
    assert found.chips == devices // (2 if name.startswith('tpu7x') else 1)
    assert len({getattr(d, 'slice_index', 0) or 0 for d in found.devices}) == slices
    assert any(part in kind.lower() for part in found.chip.kinds)


@pytest.mark.aot
def test_a_slice_that_the_compiler_refuses_is_one_line():
    with pytest.raises(RecipeError, match="--topology: 'v5e:3x5' cannot be made: .*not divisible") as error:
        topology.get('v5e:3x5')
    assert '\n' not in str(error.value)


def test_target_config_is_balanced_text_with_the_facts():
    text = gpu.target_config('h200')
    assert text.count('{') == text.count('}') == 4
    for line in ('  core_count: 132\n', '  shared_memory_per_block_optin: 232448\n', '    major: 9\n', 'platform_name: "CUDA"\n',
                 f'  device_memory_size: {141 * 10 ** 9}\n', 'device_description_str: "NVIDIA H200"\n'):
        assert line in text


def test_environment_keeps_flags_and_is_set_before_jax():
    once = environment.variables({'XLA_FLAGS': '--xla_force_host_platform_device_count=8'})
    assert once['XLA_FLAGS'] == '--xla_force_host_platform_device_count=8 --xla_gpu_enable_triton_gemm=false'
    assert environment.variables(once)['XLA_FLAGS'] == once['XLA_FLAGS'], 'twice is once'
    assert once['JAX_PLATFORMS'] == 'cpu'
    code = 'import sys; from bigvlm.plan import environment; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
