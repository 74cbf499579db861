"""Ids beyond a model's own, which objectives on text need: masks and sentinels."""
from bigvlm.core.parts import RecipeError


def with_extra(pieces: int, extra: int) -> tuple[int, int | None]:
    """(number of all ids, the mask's id or None) of a vocabulary that `extra` ids are added to."""
    if not isinstance(extra, int) or extra < 0:
        raise RecipeError(f'extra: a number of ids after the vocabulary, found {extra!r}')
    return pieces + extra, pieces if extra else None
