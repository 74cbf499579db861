"""tools/bench_loss.py: its variants are the same loss, and what it prints is there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bigvlm.core import mesh as mesh_lib
from tools import bench_loss


def arguments(*more):
    return bench_loss._parser().parse_args(more)


@pytest.mark.parametrize('loss', bench_loss.LOSSES)
def test_variants_are_the_same_loss(loss):
    """Value and all gradients; the dense one and the gathered one share no code with bigvlm's."""
    rows, cols = np.random.default_rng(0).normal(size=(2, 48, 8)).astype(np.float32)
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2))
    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        runs = {name: bench_loss.with_gradients(function, loss, 'float32', mesh)
                for name, function in bench_loss.variants(arguments('--tile', '4')).items()}
        found = {name: jax.device_get(run(rows, cols, 2., -3.)) for name, run in runs.items()}
    assert found.keys() == {'dense', 'gathered', 'tiles', 'ring'}
    for value, gradients in found.values():
        np.testing.assert_allclose(value, found['dense'][0], rtol=1e-5)
        for a, b in zip(gradients, found['dense'][1]):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(found['dense'][1][0]).max())


def test_timing_here(capsys):
    bench_loss.main(arguments('--batches', '32', '--width', '8', '--dtype', 'float32', '--turns', '2', '--losses', 'sigmoid', '--json'))
    rows = json.loads(capsys.readouterr().out)
    assert [row['variant'] for row in rows] == ['dense', 'gathered', 'tiles', 'ring']
    assert [row['auto'] for row in rows] == [False, False, True, False]
    assert all(row['examples_per_s'] == pytest.approx(32 / row['seconds']) for row in rows)


def test_rounding_at_every_hop_adds_up(capsys):
    bench_loss.main(arguments('--rounding', '4,32', '--json'))
    rows = json.loads(capsys.readouterr().out)
    few, many = (max(row['bfloat16'] for row in rows if row['devices'] == n) for n in (4, 32))
    assert 1e-3 < few < 5e-3 < many and all(row['float32'] < 1e-6 for row in rows)


@pytest.mark.aot
def test_planning_a_slice(capsys, monkeypatch):
    options = ('--topology', 'v5e:2x2', '--batches', '1024', '--tile', '128', '--width', '64', '--losses', 'softmax', '--json')
    bench_loss.main(arguments(*options))
    rows = {row['variant']: row for row in json.loads(capsys.readouterr().out)}
    assert [c['kind'] for c in rows['ring']['collectives'] if c['asynchronous']] == ['collective-permute']
    assert rows['ring']['peak'] < rows['tiles']['peak'] < rows['dense']['peak'] / 2

    small = bench_loss.topologies.get('v5e:2x2')
    small = dataclasses.replace(small, chip=dataclasses.replace(small.chip, hbm=2 ** 18))
    monkeypatch.setattr(bench_loss.topologies, 'get', lambda *_: small)
    bench_loss.main(arguments(*options[:-1]))
    assert sum('does not fit: needs' in line for line in capsys.readouterr().out.splitlines()) == 4
