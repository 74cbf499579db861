"""Damaged tars and pictures through the tar index, the webdataset source and the decoder: each must end well.

    python tools/fuzz.py --files 100000 --seed 0
    python tools/fuzz.py --files 2000 --target decode --processes 4

File n of a seed is the same everywhere: a good file made on the spot, with one to four mutations (bits flipped, ranges
zeroed, randomised, removed, doubled or cut off; tar headers and sizes that lie, long-name and PAX bombs; pictures that claim
to be huge). Ending well is a result or bigvlm's own BadExample, within `--seconds` of CPU time and `--memory` MiB of address
space; anything else (another exception, a crash, a hang, more memory) is a failure: the file is written to `--out`, what
happened is printed, and the exit status is 1. `--target` may also be a module of yours with `make(rng) -> bytes` and
`check(data)`. Children do the work, so that the watchdog survives what they do not.
"""
import argparse
import collections
import importlib
import os
import pathlib
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

OWN = {'tar': 'tools.fuzzing.tars', 'decode': 'tools.fuzzing.pictures'}
ASLEEP = 10  # times the CPU seconds of a file that it may take by the clock before it counts as hanging
START_S = 120.  # that a child may take to begin


def main() -> int:
    options = arguments()
    targets = list(OWN) if options.target == 'both' else [options.target]
    if options.child is not None:
        return child(options, targets)
    start, seen = time.perf_counter(), Seen()
    share = list(range(options.processes))
    children = [Child(options, number) for number in share]
    failure = None
    while not failure and any(c.running for c in children):
        ready, _, _ = select.select([c.pipe for c in children if c.running], [], [], .1)
        for one in children:
            failure = failure or one.listen(one.pipe in ready, seen)
    for one in children:
        one.stop()
    wall = time.perf_counter() - start
    print(f'seed {options.seed}: {seen.files} files of {" and ".join(targets)} in {wall:.0f} s ({seen.files / wall:.0f} a second); '
          + ', '.join(f'{count} {what}' for what, count in sorted(seen.outcomes.items())))
    print(f'slowest: file {seen.slowest[1]}, {seen.slowest[0]:.2f} s; peak memory of a child: {seen.memory_mib:.0f} MiB')
    if failure:
        number, what = failure
        path = pathlib.Path(options.out) / f'fuzz-{options.seed}-{number}'
        path.write_bytes(made(options.seed, number, targets)[1])
        print(f'FAILED at file {number} (written to {path}): {what}')
    return int(failure is not None)


class Seen:
    """What all children report."""

    def __init__(self):
        self.files, self.outcomes = 0, collections.Counter()
        self.slowest, self.memory_mib = (0., 0), 0.

    def add(self, number: int, seconds: float, memory_mib: float, outcome: str) -> None:
        self.files += 1
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, number))
        self.memory_mib = max(self.memory_mib, memory_mib)


class Child:
    """A process that works on files number, number + processes, …, and what is known of its fate."""

    def __init__(self, options, number: int):
        self._options, self._current, self._silent_till = options, number, time.monotonic() + START_S
        arguments = [a for a in sys.argv[1:] if not a.startswith('--child')]
        self._process = subprocess.Popen([sys.executable, os.path.abspath(__file__), *arguments, f'--child={number}'],
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
        self.pipe = self._process.stdout
        os.set_blocking(self.pipe.fileno(), False)
        self._buffer, self._said, self.running = b'', [], True

    def listen(self, ready: bool, seen: Seen) -> tuple[int, str] | None:
        """Takes in what the child says; (file, what happened) if it failed."""
        if not self.running:
            return None
        data = self.pipe.read() if ready else None
        if data:
            self._silent_till = time.monotonic() + ASLEEP * self._options.seconds
            *lines, self._buffer = (self._buffer + data).split(b'\n')
            for line in lines:
                self._line(line.decode(errors='replace'), seen)
        if data == b'':
            self.running = False
            code = self._process.wait()
            died = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'
            died += ', out of its CPU seconds: it hangs' if code == -signal.SIGPROF else ''
            return (self._current, '\n'.join([died, *self._said[-30:]])) if code else None
        if time.monotonic() > self._silent_till:
            return self._current, 'it hangs without using the processor'
        return None

    def _line(self, line: str, seen: Seen) -> None:
        if not line.startswith('@'):
            self._said.append(line)
            return
        number, seconds, memory, outcome = line[1:].split(' ', 3)
        seen.add(int(number), float(seconds), float(memory), outcome)
        self._current = int(number) + self._options.processes

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def child(options, targets) -> int:
    """Works through its files and says after each '@number seconds memory outcome'. A failure ends it."""
    checks = {target: module(target).check for target in targets}
    from bigvlm.data.bad import BadExample
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = options.memory << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print('begins', flush=True)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills, whatever library the time is spent in
    for number in range(options.child, options.files, options.processes):
        target, data = made(options.seed, number, targets)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, options.seconds)
        try:
            outcome = checks[target](data)
        except BadExample as bad:
            outcome = f'{bad}'
        except BaseException:  # the report of it is what this tool is for
            traceback.print_exc(file=sys.stdout)
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        memory = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f'@{number} {time.process_time() - start:.4f} {memory:.1f} {target}: {outcome}', flush=True)
    return 0


def made(seed: int, number: int, targets) -> tuple[str, bytes]:
    """File `number` of a seed and its target."""
    rng = random.Random(f'{seed} {number}')
    target = rng.choice(targets)
    return target, module(target).make(rng)


def module(target: str):
    return importlib.import_module(OWN.get(target, target))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--files', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--target', default='both', help='tar, decode, both, or a module of yours')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument('--seconds', type=float, default=10., help='CPU seconds a file may take')
    parser.add_argument('--memory', type=int, default=4096, help='MiB of address space of a child')
    parser.add_argument('--out', default='.', help='folder for a file that fails')
    parser.add_argument('--child', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == '__main__':
    sys.exit(main())
