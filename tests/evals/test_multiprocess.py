import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evals.fake import FakeDataset, embedder, tokenize

ROOT = Path(__file__).parents[2]
CODE = '''
import json, sys
import jax
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[1]))
from bigvlm.core.mesh import make_mesh
from tests.evals.fake import embedder
from tests.evals.test_multiprocess import evaluate
assert jax.device_count() == 4
numbers, reads = evaluate(embedder(make_mesh(dict(data=2, fsdp=2)), 8))
print(json.dumps([numbers, reads]))
'''


def evaluate(model):
    """Every scalar of both evaluators on one dataset, and which images this process read, galleries apart."""
    from bigvlm.evals.retrieval import Retrieval
    from bigvlm.evals.zero_shot import ZeroShot
    dataset = FakeDataset(37, captions=3, classes=6, substitute={11: 12})
    given = dict(datasets=lambda name: dataset, tokenizers={'text': tokenize}, length=8, examples=1)
    numbers = {}
    for evaluator in (ZeroShot(**given), Retrieval(**given)):
        numbers |= {k: v for k, v in evaluator.run(model) if isinstance(v, float)}
    return numbers, int((dataset.reads > 0).sum())


@pytest.mark.multiprocess
def test_two_processes_share_the_work_and_agree():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
                   'PYTHONPATH': str(ROOT)}
    processes = [subprocess.Popen([sys.executable, '-c', CODE, str(i), str(port)], cwd=ROOT, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    expected, _ = evaluate(embedder(None, 8))
    assert results[0][0] == results[1][0] == pytest.approx(expected)
    assert expected['n'] == 36
    assert all(reads < 37 * .7 for _, reads in results)  # about half each
