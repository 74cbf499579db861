"""Parameter paths and the one regex language that decides everything by path.

A path is the keys joined by '/': ``image/blocks/attention/query/kernel``. A rule list is a tuple of
``(regex, value, ...)``; a regex must match the whole path, and the first rule that matches wins. A rule that matches
nothing, or a path that no rule covers, is an error: both are how typing mistakes hide.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from bigvlm.core.parts import RecipeError


def flatten(tree: Any) -> dict[str, Any]:
    """``{path: leaf}`` of nested dicts, in order. Arrays, ShapeDtypeStructs and shardings are leaves."""
    if not isinstance(tree, Mapping):
        return {'': tree}
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f'{key}/{path}': leaf for path, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict that ``flatten`` came from."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def find(tree: Any, path: str) -> Any:
    """``tree['a/b']``, else ``tree['a']['b']``, for the path 'a/b', or None."""
    if isinstance(tree, Mapping) and path in tree:
        return tree[path]
    for key in path.split('/'):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def look_up(batch: Mapping[str, Any], path: str) -> Any:
    """The batch's array at a path; a missing one is an error that lists what there is."""
    found = find(batch, path)
    if found is None:
        there = ', '.join(sorted(map(str, batch))) or 'nothing'
        raise RecipeError(f'the batch has no {path!r} (it has: {there}); is an op missing in data?')
    return found


def from_key_path(key_path: Sequence[Any]) -> str:
    """A jax key path (of tree_flatten_with_path) as a path."""
    return jax.tree_util.keystr(key_path, simple=True, separator='/')


def match(rules: Iterable[Sequence[Any]], names: Iterable[str], *, what: str, cover: bool = True) -> dict[str, Any]:
    """``{path: value}`` by the first rule whose regex matches the whole path.

    Args:
        rules: ``(regex, value, ...)``; with more than one value the tuple of them is returned.
        names: the paths.
        what: the recipe key, for errors.
        cover: whether every path must be matched; otherwise unmatched paths are left out of the result.

    Raises:
        RecipeError: a rule matches no path at all, a path is not covered, or a regex does not compile.
    """
    names = list(names)
    compiled = []
    for rule in rules:
        try:
            regex, value, *more = rule if isinstance(rule, (tuple, list)) else ()
            compiled.append((re.compile(regex), (value, *more) if more else value))
        except (re.error, TypeError, ValueError) as e:
            raise RecipeError(f'{what}: {rule!r} is not a (regex, value) rule: {e}') from None
    found = {}
    for name in names:
        for regex, value in compiled:
            if regex.fullmatch(name):
                found[name] = value
                break
        else:
            if cover:
                raise RecipeError(f'{what}: no rule covers the parameter {name!r}; end the list with (".*", default)')
    for regex, _ in compiled:
        # A last catch-all that finds nothing left to catch is no mistake; a rule that matches no path is.
        if not any(regex.fullmatch(name) for name in names):
            raise RecipeError(f'{what}: the rule {regex.pattern!r} matches no parameter; there are, for example: '
                              f'{", ".join(names[:6])}')
    return found


def select(regexes: Iterable[str], names: Iterable[str], *, what: str) -> set[str]:
    """The paths that any of ``regexes`` matches; a regex that matches none is an error."""
    return set(match([(regex, True) for regex in regexes], names, what=what, cover=False))
