"""A fuzzing target that ends as $PLANTED says, at every fifth file or so."""
import os
import time


def make(rng) -> bytes:
    return rng.randbytes(3) if rng.random() < .8 else b'planted'


def check(data: bytes) -> str:
    if data == b'planted':
        {'crash': os.abort, 'hang': _forever, 'sleep': lambda: time.sleep(1000), 'memory': lambda: bytearray(1 << 40),
         'error': lambda: {}['nothing'], 'exit': lambda: os._exit(3), 'none': str}[os.environ['PLANTED']]()
    return 'fine'


def _forever():
    while True:
        sum(range(1000))
