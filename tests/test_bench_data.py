"""tools/bench_data.py: what it makes is what it says, and a small run prints its table."""
import io
import os
import random
import subprocess
import time

import numpy as np
from PIL import Image

from bigvlm.data.ops import _crops
from tools import bench_data


def test_photos_have_the_size_of_real_ones():
    rng = np.random.default_rng(1)
    jpegs = [bench_data.photo(rng) for _ in range(6)]
    assert 50_000 < np.mean([len(jpeg) for jpeg in jpegs]) < 64_000 and len(set(jpegs)) == 6
    assert Image.open(io.BytesIO(jpegs[0])).size == (500, 375)


def test_the_bare_loop_crops_as_we_do():
    rng, ours = random.Random(0), np.random.default_rng(0)
    bare = np.array([bench_data.crop_box(rng, 375, 500) for _ in range(4000)])
    mine = np.array([_crops.region(ours, 375, 500, bench_data.AREA, bench_data.RATIO) for _ in range(4000)])
    assert np.all(abs(bare.mean(0) - mine.mean(0)) < 1.5) and np.all(abs(bare.std(0) - mine.std(0)) < 1.5)


def test_cpu_time_counts_children():
    before = bench_data.cpu_s(os.getpid())
    with subprocess.Popen(['sh', '-c', 'while :; do :; done']) as child:
        time.sleep(.3)
        used = bench_data.cpu_s(os.getpid()) - before
        child.kill()
    assert used > .05


def test_a_small_run(capsys):
    bench_data.main(['--images', '24', '--batch', '8', '--seconds', '.1', '--rounds', '1', '--only', 'bare,bigvlm,tf_data',
                     '--filters', 'bicubic', '--cores', '2', '--processes', '1', '--tf-python', '/bin/false'])
    said = capsys.readouterr().out
    assert 'tf.data, 2 threads, bicubic: does not run here (the process ended)' in said
    table = said.split('bicubic, antialiased')[1].splitlines()
    names = ['bare, 1 threads', 'bare, 2 threads', 'bigvlm, 2 threads', 'bigvlm, 1 processes x 2']
    assert [next((n for n in names if line.startswith(n)), None) for line in table[1:5]] == names
    means = [float(line.rpartition(' ')[2]) for line in table[1:5]]
    assert max(means) - min(means) < 25  # the same pictures: whole batches of ours, one image of the bare loop's
    assert means[2] == means[3]
    assert '1.00 (1.00 to 1.00)' in table[3]
