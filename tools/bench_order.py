"""What each order asks of storage: requests and bytes per image, for one host and for several, measured.

    python tools/bench_order.py                                             # on tars made in a temporary folder
    python tools/bench_order.py --files 'gs://bucket/set/*.tar' --batch 32768 --hosts 1,16,64 --examples 100000

Every host reads its rows of the same global batches through a source of its own, as it would in a run, without decoding.
``order='shuffle'`` asks once per image. ``order='blocks'`` asks once per block; a block that two hosts need, or that has to
go before all of it was used, is read again: bytes read beside bytes used show how often.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bigvlm.data.datasets import Datasets  # noqa: E402
from bigvlm.data.draws import Draws  # noqa: E402


def make_tars(folder: str, examples: int, size: int, per_tar: int = 1000) -> str:
    """Tars with ``examples`` samples whose images are ``size`` random bytes; their glob."""
    rng = np.random.default_rng(0)
    for first in range(0, examples, per_tar):
        with tarfile.open(f'{folder}/part-{first // per_tar:05}.tar', 'w') as tar:
            for i in range(first, min(first + per_tar, examples)):
                for ending, data in (('jpg', rng.bytes(size)), ('txt', b'a caption of some length')):
                    member = tarfile.TarInfo(f'{i:09}.{ending}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f'{folder}/*.tar'


def measure(spec: dict, batch: int, batches: int, hosts: int) -> tuple[float, float, float]:
    """(requests an image, bytes read over bytes used, blocks kept at most on a host), summed over all hosts."""
    requests, read, used, kept, share = 0, 0, 0, 0, batch // hosts
    for host in tqdm(range(hosts), desc=f'{spec["order"]}, {hosts} hosts', disable=not sys.stderr.isatty(), leave=False):
        draws = Draws([Datasets(dict(data=dict(train=spec), seed=0), {})], 'train', batch)
        (dataset,) = draws.datasets.values()
        for number in range(batches):
            for row in range(host * share, (host + 1) * share):
                used += len(draws.example(number, row)['image'])
                kept = max(kept, len(dataset.blocks) if dataset.blocks is not None else 0)
        draws.close()
        counts = draws.counts()
        requests, read = requests + counts['requests'], read + counts['bytes']
    return requests / (batches * batch), read / used, kept


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', default='', help='tars; made if not given')
    parser.add_argument('--batch', type=int, default=1024)
    parser.add_argument('--block', type=int, default=64)
    parser.add_argument('--pool', type=int, default=16_384)
    parser.add_argument('--hosts', default='1,4,16')
    parser.add_argument('--examples', type=int, default=100_000, help='to draw; made: twice as many')
    parser.add_argument('--image_bytes', type=int, default=4000, help='of a made image')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or make_tars(folder, 2 * options.examples, options.image_bytes)
        source = dict(name='webdataset', files=files)
        batches = max(1, options.examples // options.batch)
        print(f'{batches} batches of {options.batch} from {files}; blocks of {options.block}, pool of {options.pool}')
        print(f'{"order":8} {"hosts":>5} {"requests/image":>15} {"bytes read/used":>16} {"blocks kept":>12} {"seconds":>8}')
        for hosts in map(int, options.hosts.split(',')):
            for order in ('shuffle', 'blocks'):
                began = time.perf_counter()
                spec = dict(source=source, order=order, block=options.block, pool=options.pool)
                requests, ratio, kept = measure(spec, options.batch, batches, hosts)
                print(f'{order:8} {hosts:5} {requests:15.4f} {ratio:16.2f} {kept:12} {time.perf_counter() - began:8.1f}', flush=True)


if __name__ == '__main__':
    main()
