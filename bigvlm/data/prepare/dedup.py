"""Duplicates: equal images, equal captions, equal pairs, and images that look alike; within a source and against others.

N hashes, U different ones, E those of an evaluation set.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.prepare import hashes
from bigvlm.data.prepare.walk import walk

KEYS = ('image', 'caption', 'pair', 'near')
_BITS = 64
_MOST = 15  # bits that may differ: bands of four bits would be of no help beyond


@dataclass(frozen=True)
class Hashes:
    """`by`: key -> uint64 [N] of the `indices` that could be read; `unusable`: reason -> count. 8 bytes per key and example."""
    indices: np.ndarray
    by: Mapping[str, np.ndarray]
    unusable: Mapping[str, int]


def collect(source: Any, keys: Sequence[str], workers: int = 0, what: str = '') -> Hashes:
    """One pass over a source. Raises RecipeError for unknown keys."""
    if not keys or set(keys) - set(KEYS):
        raise RecipeError(f'--by: of {", ".join(KEYS)}, separated by commas, found {",".join(keys)!r}')

    def work(index: int, example: Any) -> list[int]:
        if keys == ('caption',):
            example = {'captions': example}
        return [_hash(key, example) for key in keys]

    columns, indices, unusable = {key: hashes.Column() for key in keys}, hashes.Column('I'), {}
    for index, found in walk(source, work, None, workers, what, source.captions if keys == ('caption',) else None):
        if isinstance(found, BadExample):
            unusable[str(found)] = unusable.get(str(found), 0) + 1
            continue
        indices.add(index)
        for key, value in zip(keys, found):
            columns[key].add(value)
    return Hashes(indices.values, {key: column.values for key, column in columns.items()}, unusable)


def _hash(key: str, example: Mapping[str, Any]) -> int:
    if key != 'caption' and not isinstance(example.get('image'), np.ndarray) and not example.get('image'):
        raise BadExample('no image')
    if key in ('caption', 'pair') and not example.get('captions'):
        raise BadExample('no caption')
    if key == 'near':
        return hashes.dhash(example['image'])
    if key == 'caption':
        return hashes.of_captions(example['captions'])
    if key == 'image':
        return hashes.of_bytes(example['image'])
    both = hashes.of_bytes(example['image']), hashes.of_captions(example['captions'])
    return hashes.of_bytes(b''.join(part.to_bytes(8, 'little') for part in both))


def repeated(hash_N: np.ndarray, distance: int = 0) -> np.ndarray:
    """bool [N]: not the first of its group. Alike are hashes that differ in at most `distance` bits, and what is alike to those."""
    unique_U, first_U, place_N = np.unique(hash_N, return_index=True, return_inverse=True)
    if distance:
        a, b = near(unique_U, distance)
        _, group_U = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(len(unique_U),) * 2), directed=False)
        first_G = np.full(group_U.max() + 1, len(hash_N)) if len(group_U) else np.zeros(0, int)
        np.minimum.at(first_G, group_U, first_U)
        first_U = first_G[group_U]
    return first_U[place_N] != np.arange(len(hash_N))


def overlap(hash_N: np.ndarray, hash_E: np.ndarray, distance: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(bool [N], bool [E]): which of a training set are alike to one of an evaluation set, and the other way round."""
    unique_U, place = np.unique(np.concatenate([hash_N, hash_E]), return_inverse=True)
    place_N, place_E = place[:len(hash_N)], place[len(hash_N):]
    is_train_U, is_eval_U = np.zeros((2, len(unique_U)), bool)
    is_train_U[place_N], is_eval_U[place_E] = True, True
    hit_train_U, hit_eval_U = is_train_U & is_eval_U, is_train_U & is_eval_U
    if distance:
        for a, b in (pairs := near(unique_U, distance), pairs[::-1]):
            crossing = is_train_U[a] & is_eval_U[b]
            hit_train_U[a[crossing]], hit_eval_U[b[crossing]] = True, True
    return hit_train_U[place_N], hit_eval_U[place_E]


def near(hash_U: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (a, b) of places of different hashes, uint64 [U], that differ in 1 to `distance` bits.

    Of distance + 1 bands of the bits, two such hashes share at least one: so only those that share a band are compared,
    one band after the other, and among the sorted ones each with its next neighbours for as long as the band is the same.
    """
    if not 0 < distance <= _MOST:
        raise RecipeError(f'--distance: 1 to {_MOST} of the {_BITS} bits, found {distance}')
    edges = np.linspace(0, _BITS, distance + 2).round().astype(int)
    found_a, found_b = [], []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
        band_U = hash_U >> np.uint64(low) & np.uint64((1 << high - low) - 1)
        order_U = np.argsort(band_U, kind='stable')
        band_U, sorted_U = band_U[order_U], hash_U[order_U]
        left, step = np.arange(len(hash_U)), 0
        while len(left):
            step += 1
            left = left[left + step < len(hash_U)]
            left = left[band_U[left] == band_U[left + step]]
            alike = left[np.bitwise_count(sorted_U[left] ^ sorted_U[left + step]) <= distance]
            found_a.append(order_U[alike])
            found_b.append(order_U[alike + step])
    pairs_2P = np.sort(np.stack([np.concatenate(found_a), np.concatenate(found_b)]), axis=0) if found_a else np.zeros((2, 0), int)
    return tuple(np.unique(pairs_2P, axis=1))  # a pair that shares several bands was found in each
