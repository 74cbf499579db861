import pytest

from bigvlm.core import devices


@pytest.mark.parametrize('kind, name', [
    ('TPU v4', 'v4'), ('TPU v5 lite', 'v5e'), ('TPU v5e', 'v5e'), ('TPU v5', 'v5p'), ('TPU v5p', 'v5p'), ('TPU v6 lite', 'v6e'),
    ('TPU7x', 'tpu7x'), ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA H200', 'h200'), ('NVIDIA A100-SXM4-80GB', 'a100')])
def test_the_chip_of_a_device_kind(kind, name):
    assert devices.chip(kind) is devices.CHIPS[name]
    assert devices.peak_flops(kind) == devices.CHIPS[name].flops


def test_unknown_kinds_have_no_facts():
    assert devices.chip('cpu') is None and devices.peak_flops('cpu') is None


def test_other_forms_of_a_gpu_have_their_own_peak():
    assert devices.peak_flops('NVIDIA H100 PCIe') == 756e12
    assert devices.peak_flops('NVIDIA H100 NVL') == 835e12


def test_every_fact_is_plausible_and_has_a_source():
    for name, chip in devices.CHIPS.items():
        assert 1e14 < chip.flops < 1e16 and 1e10 < chip.hbm < 3e11 and chip.hbm_source in ('compiler', 'datasheet'), name
        assert chip.network < chip.link < chip.bandwidth < chip.flops and chip.source.startswith('datasheet'), name
        assert 100 < chip.flops / chip.bandwidth < 600, 'products per byte of memory: a few hundred on all of them'
