"""Parts: a recipe names them, the file name is the registry.

A part's spec is ``{'name': FILE, field: value, ...}``. ``FILE`` is a file of the kind's package (``sigmoid`` in
``bigvlm.objectives``) or a dotted path to a module of the user's own. The part is the class or function in that file
whose name is the file's, ignoring case and underscores: ``zero_shot`` -> ``ZeroShot``, ``vit`` -> ``ViT``. Its keyword
arguments are the recipe's schema.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

# What Flax adds to every module's dataclass; never a recipe's business.
_LINEN_FIELDS = ('parent', 'name')
# What callers supply to parts that declare it; never written in a recipe either.
GIVEN = ('corpus', 'datasets', 'label_names', 'tokenizers')


class RecipeError(ValueError):
    """Something in the recipe is impossible; the message is one line and names the key and what would be valid."""


def names(package: str) -> list[str]:
    """The parts of a kind: the public files of its package."""
    found = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith('_') and _is_part(package, m.name))


def _is_part(package: str, file: str) -> bool:
    """A file is a part if it defines something of its own name; helpers beside the parts do not."""
    try:
        return _find(importlib.import_module(f'{package}.{file}')) is not None
    except ImportError:
        return True  # the part exists; asking for it tells what is missing


def _find(module) -> Callable | None:
    wanted = module.__name__.rsplit('.', 1)[-1].replace('_', '').lower()
    for key, value in vars(module).items():
        own = getattr(value, '__module__', None) == module.__name__
        if own and callable(value) and key.replace('_', '').lower() == wanted:
            return value
    return None


def find(package: str, name: str, where: str) -> Callable:
    """The class or function that part ``name`` of ``package`` (or the dotted module ``name``) defines."""
    path = name if '.' in name else f'{package}.{name}'
    if importlib.util.find_spec(package) is None or not _exists(path):
        valid = names(package)
        close = difflib.get_close_matches(name, valid, n=1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise RecipeError(f'{where}.name: no part {name!r} in {package}{hint} (there are: {", ".join(valid)}; '
                          f'or a dotted path to a module of yours)')
    part = _find(importlib.import_module(path))
    if part is None:
        raise RecipeError(f'{where}.name: module {path} defines no class or function named like the file')
    return part


def _exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


def fields(part: Callable) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a part."""
    found = inspect.signature(part).parameters
    return {k: p for k, p in found.items() if k not in _LINEN_FIELDS and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def build(package: str, spec: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Builds the part that ``spec`` names: ``part(**fields, **given)``.

    ``given`` is what the caller supplies rather than the recipe (tokenizers, dtypes…); a part receives those it declares.
    Raises RecipeError naming ``where`` for an unknown part, an unknown or missing field.
    """
    return bind(package, spec, where, **given)()


def bind(package: str, spec: Mapping[str, Any], where: str, **given: Any) -> Callable[[], Any]:
    """As ``build``, but checks only and returns the call, so that Flax modules can be made inside their parent."""
    spec = dict(spec)
    if 'name' not in spec:
        raise RecipeError(f'{where}: a part needs a name; one of {", ".join(names(package))}')
    part = find(package, spec.pop('name'), where)
    known = fields(part)
    given = {k: v for k, v in given.items() if k in known}
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(part).parameters.values())  # **fields of another part
    for key in spec:
        if key in given or key not in known and not passes_on:
            valid = sorted(set(known) - set(given))
            close = difflib.get_close_matches(key, valid, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise RecipeError(f'{where}.{key}: unknown field{hint} (valid: {", ".join(valid) or "none"})')
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in spec and key not in given:
            raise RecipeError(f'{where}.{key}: this field is required')
    arguments = {k: freeze(v) for k, v in spec.items()}

    def make():
        try:
            return part(**arguments, **given)
        except RecipeError as e:  # the part named its field; the recipe's key is known here
            message = str(e)
            raise RecipeError(message if message.startswith(where) else f'{where}: {message}') from None
    return make


def freeze(value: Any) -> Any:
    """A recipe's value as plain Python: mappings to dicts, lists to tuples (Flax fields must be hashable where static)."""
    if isinstance(value, Mapping):
        return {k: freeze(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    return value
