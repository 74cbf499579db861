"""Learning a codebook of patches: principal components, then k-means by mini-batches; and how well it does.

N patches; P the numbers of one; F features; K codes; M patches of a mini-batch.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops._codebook import Codebook, cut
from bigvlm.data.prepare.walk import progress

_POOL, _LEAST = 16, 65_536  # patches per code, and at least, among which the first codes are drawn
_SCORES = 1 << 24  # distances held at once


@dataclass(frozen=True)
class Settings:
    """`codes`, `patch`: how many, of which side in pixels; `features`: principal components; `epochs` over the patches.

    Patches are compared by their principal components, since a product with 64 of them is a twelfth of one with 768 pixels;
    what they leave out of photos is noise. `whiten`: the power of its spread that each component is divided by: 0 is the
    distance of pixels, 1 makes components equal. Of 8-pixel patches of Flickr8k in 512 codes (held out; perplexity, and what
    codes explain of mean colours and of the structure within patches): 0: 229, 97 %, 47 %; .5: 115, 89 %, 48 %; 1: 74, 57 %, 25 %.
    """
    codes: int = 8192
    patch: int = 16
    features: int = 64
    whiten: float = 0.
    epochs: int = 6
    seed: int = 0

    def __post_init__(self):
        for name in ('codes', 'patch', 'features', 'epochs'):
            if getattr(self, name) < 1:
                raise RecipeError(f'--{name}: found {getattr(self, name)}; valid: from 1')
        if not 0. <= self.whiten <= 1.:
            raise RecipeError(f'--whiten: found {self.whiten}; valid: 0 to 1')


def patches_of(image_HWC: np.ndarray, patch: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` (at most all) random ones of the patches of an image's grid, uint8 [count, P]."""
    patch_LP = cut(image_HWC, patch)
    return patch_LP[rng.permutation(len(patch_LP))[:count]]


def learn(patch_NP: np.ndarray, settings: Settings, what: str = '') -> Codebook:
    """uint8 [N, P] -> a codebook. `what`: the name of progress bars. RecipeError for fewer different patches than codes."""
    rng = np.random.default_rng(settings.seed)
    mean_P, projection_PF, inverse_FP = components(patch_NP, settings.features, settings.whiten)
    empty = Codebook(settings.patch, mean_P, projection_PF, inverse_FP, np.zeros((0, projection_PF.shape[1]), np.float32))
    feature_NF = np.concatenate([empty.features(patch_NP[i:i + 65536]) for i in range(0, len(patch_NP), 65536)])
    code_KF = kmeans(feature_NF, settings.codes, settings.epochs, rng, what)
    return Codebook(settings.patch, mean_P, projection_PF, inverse_FP, code_KF)


def components(patch_NP: np.ndarray, features: int, whiten: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean [P], projection [P, F], its inverse [F, P]) of patches in [0, 1]: the `features` components of most variance,
    each divided by its spread to the power `whiten`. F is less where fewer components have any variance."""
    total_P, total_PP = np.zeros(patch_NP.shape[1]), np.zeros((patch_NP.shape[1],) * 2)
    for start in range(0, len(patch_NP), 16384):
        piece_MP = patch_NP[start:start + 16384].astype(np.float64) / 255
        total_P += piece_MP.sum(axis=0)
        total_PP += piece_MP.T @ piece_MP
    mean_P = total_P / len(patch_NP)
    variance_P, vector_PP = np.linalg.eigh(total_PP / len(patch_NP) - np.outer(mean_P, mean_P))
    kept = np.argsort(-variance_P)[:features]
    kept = kept[variance_P[kept] > 1e-9]
    if not len(kept):
        raise RecipeError('--source: all its patches are the same')
    spread_F = np.sqrt(variance_P[kept]) ** whiten
    projection_PF, inverse_FP = vector_PP[:, kept] / spread_F, (vector_PP[:, kept] * spread_F).T
    return tuple(array.astype(np.float32) for array in (mean_P, projection_PF, inverse_FP))


def kmeans(x_NF: np.ndarray, codes: int, epochs: int, rng: np.random.Generator, what: str = '') -> np.ndarray:
    """float32 [K, F]: k-means++ seeds, then mini-batches (Sculley, WWW 2010), then one whole step of Lloyd's algorithm.

    A code moves by the mean of all that was nearest to it, what came an epoch earlier counting half. A code that an epoch
    has not used is set on a patch drawn with a probability as its squared distance from its code, as seeds are.
    """
    code_KF, weight_K = seeds(x_NF, codes, rng, f'{what}: seeds' if what else ''), np.zeros(codes)
    batch = max(4096, 2 * codes)
    with progress((epochs + 1) * len(x_NF), f'{what}: k-means' if what else '') as bar:
        for _ in range(epochs):
            seen_K, far_N, order_N = np.zeros(codes, np.int64), np.zeros(len(x_NF), np.float32), rng.permutation(len(x_NF))
            for start in range(0, len(x_NF), batch):
                place_M = order_N[start:start + batch]
                total_KF, count_K, far_N[place_M] = _sums(x_NF[place_M], code_KF)
                weight_K += count_K
                code_KF += (total_KF - count_K[:, None] * code_KF) / np.maximum(weight_K, 1)[:, None].astype(np.float32)
                seen_K += count_K
                bar.update(len(place_M))
            if len(dead := np.flatnonzero(seen_K == 0)):
                code_KF[dead] = x_NF[_drawn(far_N, len(dead), rng)]
                weight_K[dead] = 0
            weight_K /= 2
        total_KF, count_K, _ = _sums(x_NF, code_KF, bar)
    used = count_K > 0
    code_KF[used] = total_KF[used] / count_K[used, None].astype(np.float32)
    return code_KF


def seeds(x_NF: np.ndarray, codes: int, rng: np.random.Generator, what: str = '') -> np.ndarray:
    """float32 [K, F], by k-means++ (Arthur, Vassilvitskii 2007): each drawn with a probability as the squared distance to those
    before it, of 16 patches a code or more. RecipeError where there are fewer different patches."""
    pool_NF = x_NF[rng.permutation(len(x_NF))[:max(_POOL * codes, _LEAST)]]
    square_N, far_N = np.square(pool_NF).sum(axis=1), np.full(len(pool_NF), np.inf, np.float32)
    chosen = [int(rng.integers(len(pool_NF)))]
    with progress(codes, what) as bar:
        while True:
            code_F = pool_NF[chosen[-1]]
            far_N = np.minimum(far_N, np.maximum(square_N - 2 * (pool_NF @ code_F) + code_F @ code_F, 0))
            far_N[chosen[-1]] = 0
            bar.update()
            if len(chosen) == codes:
                return pool_NF[chosen].copy()
            if far_N.max() <= 1e-6 * max(float(square_N.max()), 1e-9):
                raise RecipeError(f'--codes: found {codes}; valid: at most {len(chosen)}, as many different patches there are')
            chosen.append(int(_drawn(far_N, 1, rng)[0]))


def nearest(x_NF: np.ndarray, code_KF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(code [N], squared distance [N]) of the nearest code."""
    half_K, step = np.square(code_KF).sum(axis=1) / 2, max(1, _SCORES // len(code_KF))
    index, score = [], []
    for start in range(0, len(x_NF), step):
        score_MK = x_NF[start:start + step] @ code_KF.T - half_K
        index.append(score_MK.argmax(axis=1))
        score.append(np.take_along_axis(score_MK, index[-1][:, None], axis=1)[:, 0])
    return np.concatenate(index), np.maximum(np.square(x_NF).sum(axis=1) - 2 * np.concatenate(score), 0)


@dataclass(frozen=True)
class Quality:
    """`counts_K`: how often each code was used; `error`: mean squared error of pixels in [0, 1] of what codes are painted as,
    `plain` that of the mean patch."""
    counts_K: np.ndarray
    error: float
    plain: float

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the use of codes: as many codes of equal use are worth as much."""
        share_K = self.counts_K[self.counts_K > 0] / self.counts_K.sum()
        return float(np.exp(-(share_K * np.log(share_K)).sum()))

    @property
    def psnr(self) -> float:
        """Of the error, in dB."""
        return float(-10 * np.log10(max(self.error, 1e-12)))

    def as_dict(self) -> dict[str, Any]:
        return dict(patches=int(self.counts_K.sum()), used=int((self.counts_K > 0).sum()), perplexity=self.perplexity, error=self.error,
                    explained=1 - self.error / max(self.plain, 1e-12), psnr=self.psnr)


def quality(codebook: Codebook, pieces: Iterable[np.ndarray]) -> Quality:
    """Over patches, uint8 [M, P] each."""
    counts_K, error, plain, total = np.zeros(len(codebook), np.int64), 0., 0., 0
    for patch_MP in pieces:
        code_M = codebook.nearest(codebook.features(patch_MP))
        counts_K += np.bincount(code_M, minlength=len(codebook))
        true_MP = patch_MP.astype(np.float64) / 255
        error += np.square(codebook.pixels(code_M) / 255 - true_MP).sum()
        plain += np.square(codebook.mean_P - true_MP).sum()
        total += true_MP.size
    if not total:
        raise RecipeError('--source: no image to judge the codebook by')
    return Quality(counts_K, error / total, plain / total)


def _sums(x_MF: np.ndarray, code_KF: np.ndarray, bar: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sum [K, F] of what is nearest to each code, how many [K], squared distance [M])."""
    index_M, far_M = nearest(x_MF, code_KF)
    belongs_KM = csr_array((np.ones(len(x_MF), np.float32), (index_M, np.arange(len(x_MF)))), shape=(len(code_KF), len(x_MF)))
    if bar is not None:
        bar.update(len(x_MF))
    return belongs_KM @ x_MF, np.bincount(index_M, minlength=len(code_KF)), far_M


def _drawn(weight_N: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` places, each with a probability as its weight; repetitions are possible."""
    total_N = np.cumsum(weight_N, dtype=np.float64)
    return np.minimum(np.searchsorted(total_N, rng.random(count) * total_N[-1], side='right'), len(weight_N) - 1)
