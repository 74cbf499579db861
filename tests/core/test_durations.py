import pytest

from bigvlm.core import devices, durations
from bigvlm.core.parts import RecipeError

RUN = dict(batch=256, examples_per_epoch=10_000, total_steps=2000)


@pytest.mark.parametrize('duration, expected', [
    (100, 100), ('100', 100), ('100 steps', 100), ('1 step', 1), ('20_000 steps', 20_000), ('1e3 steps', 1000),
    ('1e6 examples', 3906), ('1 example', 1), ('0 examples', 0),
    ('3 epochs', 117), ('1 epoch', 39), ('.5 epochs', 19), ('5%', 100), ('2.5 %', 50), ('0.01%', 1),
    (0, 0), ('100%', 2000),
])
def test_units(duration, expected):
    assert durations.steps(duration, **RUN) == expected


def test_decimal_fractions_are_exact():
    # In floating point 0.29 * 10_000 / 100 is 28.999999999999996.
    assert durations.steps('0.29 epochs', batch=100, examples_per_epoch=10_000) == 29


@pytest.mark.parametrize('duration, message', [
    ('3 fortnights', r"eval\.every: unknown unit 'fortnights' .*valid: steps, examples, epochs, %"),
    ('soon', r'eval\.every: .*is no duration; .*epochs'), ('', 'is no duration'), ('-3 steps', 'negative'),
    (2.5, 'is no duration'), (True, 'is no duration'), (None, 'is no duration'), ('1.2.3 steps', 'is no duration'),
])
def test_errors_name_the_key_and_what_is_valid(duration, message):
    with pytest.raises(RecipeError, match=message):
        durations.steps(duration, what='eval.every', **RUN)


def test_units_that_cannot_be_converted():
    with pytest.raises(RecipeError, match='steps: .*size of an epoch'):
        durations.steps('3 epochs', batch=8, examples_per_epoch=None, what='steps')
    with pytest.raises(RecipeError, match='steps: .*part of the run'):
        durations.steps('3%', batch=8, examples_per_epoch=100, what='steps')


@pytest.mark.parametrize('kind, peak', [
    ('TPU v4', 275e12), ('TPU v5 lite', 197e12), ('TPU v5e', 197e12), ('TPU v5', 459e12), ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12), ('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12), ('cpu', None),
])
def test_peak_flops(kind, peak):
    assert devices.peak_flops(kind) == peak
