"""Opening and reading an index of very many examples: seconds, memory, time to the first batch, time to resume.

    python tools/bench_index.py --examples 1e9 --shards 100000          # 16 GB in a temporary folder, removed at the end
    python tools/bench_index.py --examples 1e9 --shards 100000 --crc    # with a checksum per member: 28 GB

The shards are a few real tars under many names (hard links), the index is written by bigvlm's own writer from their real
records, so that every example can be read. Each measurement is a new process that opens ``Webdataset`` on a glob as a run
does (list and stat all shards, find the index in the cache, map it) and reads raw examples in global-shuffle order. "cold"
is with the index and the tars dropped from the page cache before.
"""
import argparse
import glob
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bigvlm.data import storage  # noqa: E402
from bigvlm.data.order import order  # noqa: E402
from bigvlm.data.sources import _tar_build, _tar_index  # noqa: E402
from bigvlm.data.sources._tar_samples import scan  # noqa: E402
from bigvlm.data.sources.webdataset import Webdataset  # noqa: E402

LINKS = 60_000  # names that ext4 gives one file, at most (65,000)
SEED = 0


def main() -> None:
    options = arguments()
    if options.measure:
        return measure(options)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix='bench_index-') as folder:
        os.environ['BIGVLM_CACHE'] = f'{folder}/cache'
        start = time.perf_counter()
        index = make(folder, int(options.examples), options.shards, options.crc)
        sizes = [os.path.getsize(p) for p in (index, _tar_index.crc_path_of(index)) if p.exists()]
        print(f'made {options.shards:,} shards and an index of {" + ".join(f"{s / 1e9:.2f}" for s in sizes)} GB '
              f'in {time.perf_counter() - start:.0f} s', flush=True)
        for position in (0, int(.9 * options.examples)):
            for cold in (True, False):
                report(folder, index, position, cold, options)


def make(folder: str, examples: int, shards: int, crc: bool):
    """Shards of equally many examples in `folder`/shards, and their index in the cache; the path of the index."""
    os.makedirs(f'{folder}/shards')
    per_shard = examples // shards
    originals = [write_tar(f'{folder}/{i}.tar', per_shard, i) for i in range(-(-shards // LINKS))]
    names = [f'{folder}/shards/{i:06}.tar' for i in range(shards)]
    for i, name in enumerate(names):
        os.link(originals[i % len(originals)], name)
    found = [(scan(tar, os.path.getsize(tar), crc), os.path.getsize(tar)) for tar in originals]
    known = dict(zip(names, storage.stats(names)))
    path = _tar_build._cached(_tar_build._state(known), crc)
    tiled = ((*found[i % len(found)], os.path.basename(name)) for i, name in enumerate(names))
    _tar_index.write(path, tqdm(tiled, total=shards, desc='index', unit=' tars', mininterval=5.))
    os.sync()
    return path


def write_tar(path: str, count: int, seed: int) -> str:
    """A real tar of `count` samples: a small JPEG, a caption, a record."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((32, 24)).save(file, 'JPEG')
    record = json.dumps({'caption': f'caption of set {seed}', 'key': '0'}).encode()
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for i in range(count):
            for ending, data in (('jpg', file.getvalue()), ('json', record), ('txt', b'a caption')):
                member = tarfile.TarInfo(f'{i:08}.{ending}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def report(folder: str, index, position: int, cold: bool, options) -> None:
    if cold:
        for path in (index, _tar_index.crc_path_of(index), *glob.glob(f'{folder}/*.tar')):
            if os.path.exists(path):
                with open(path, 'rb') as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run([sys.executable, __file__, '--measure', f'{folder}/shards/*.tar', '--position', str(position),
                           '--batch', str(options.batch)], stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout)
    print(f'at example {position:,}, {"cold" if cold else "warm"}: open {said["open_s"]:.2f} s ({said["cpu_s"]:.2f} s of CPU; '
          f'listing and stat alone: {said["listing_s"]:.2f} s), first example {said["first_s"] * 1e3:.1f} ms, '
          f'batch of {options.batch} {said["batch_s"]:.2f} s, together {said["total_s"]:.2f} s; '
          f'RSS {said["rss_mib"]:.0f} MiB (anonymous {said["anonymous_mib"]:.0f}), before opening {said["before_mib"]:.0f} '
          f'({said["before_anonymous_mib"]:.0f}); {said["examples"]:,} examples', flush=True)


def measure(options) -> None:
    """In a process of its own: opens, reads a batch in the order of a global shuffle, prints JSON."""
    before = memory_mib()
    start, cpu = time.perf_counter(), time.process_time()
    source = Webdataset(options.measure)
    opened, cpu = time.perf_counter(), time.process_time() - cpu
    n = len(source)
    example = source[order(SEED, n, 0, options.position)]
    first = time.perf_counter()
    batch = [source[order(SEED, n, 0, options.position + i)] for i in range(options.batch)]
    end = time.perf_counter()
    assert batch[0] == example and all(e['image'][:2] == b'\xff\xd8' and e['captions'] for e in batch)
    after = memory_mib()
    again = time.perf_counter()
    storage.stats(list(storage.find(options.measure, 'files')))
    listing = time.perf_counter() - again
    print(json.dumps(dict(
        listing_s=listing, open_s=opened - start, cpu_s=cpu, first_s=first - opened, batch_s=end - first, total_s=end - start,
        before_mib=before[0], before_anonymous_mib=before[1], rss_mib=after[0], anonymous_mib=after[1], examples=n)))


def memory_mib() -> tuple[float, float]:
    """Resident and, of this, anonymous memory of this process."""
    with open('/proc/self/smaps_rollup') as file:
        said = {line.split()[0]: int(line.split()[1]) for line in file if line[0] in 'RA'}
    return said['Rss:'] / 1024, said['Anonymous:'] / 1024


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--examples', type=float, default=1e9)
    parser.add_argument('--shards', type=int, default=100_000)
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--crc', action='store_true', help='with a checksum per member')
    parser.add_argument('--dir', help='where the temporary folder goes; needs 16 bytes an example, with --crc 28')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    parser.add_argument('--position', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == '__main__':
    main()
