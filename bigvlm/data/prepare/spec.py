"""A source in one argument of a command line: 'webdataset,files=DIR/*.tar' or "subset,of=dict(name='…'),keep=FILE"."""
import ast
import re
from typing import Any

from bigvlm.core.parts import RecipeError

_OPENING, _CLOSING = '([{', ')]}'


def parse(text: str, flag: str = '--source', example: str = "'webdataset,files=DIR/*.tar'") -> dict[str, Any]:
    """'NAME,key=value,…' as the dict that a recipe would have. Values are Python's where they parse, else text.

    Commas within brackets, braces or quotes belong to the value. Raises RecipeError.
    """
    name, *fields = _split(text)
    if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
        raise RecipeError(f"{flag}: begins with a {flag.strip('-')}'s name, as {example}, found {name!r}")
    spec: dict[str, Any] = {'name': name}
    for field in fields:
        key, equals, value = field.partition('=')
        if not equals or not key.strip().isidentifier():
            raise RecipeError(f'{flag}: fields are key=value, found {field!r}')
        spec[key.strip()] = _value(value.strip())
    return spec


def _value(text: str) -> Any:
    try:
        return _literal(ast.parse(text, mode='eval').body)
    except (ValueError, SyntaxError):
        return text


def _literal(node: ast.expr) -> Any:
    """A Python literal, or dict(key=literal), as recipes write specs. Raises ValueError for other expressions."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
    return ast.literal_eval(node)


def _split(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    pieces, depth, quote = [''], 0, ''
    for letter in text:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '\'"':
            quote = letter
        depth += (not quote) * ((letter in _OPENING) - (letter in _CLOSING))
        if letter == ',' and not quote and not depth:
            pieces.append('')
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]
