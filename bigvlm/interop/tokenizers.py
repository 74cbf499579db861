"""Tokenizers in and out: a folder of transformers or open_clip as a spec of the recipe's ``tokenizers``, and ours as files of theirs."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.files.entry import json_mapping

# What transformers opens a model's texts with if tokenizer_config.json does not say it.
CLASSES = {'clip': 'CLIPTokenizer', 'siglip': 'SiglipTokenizer', 'siglip2': 'Siglip2Tokenizer', 'roberta': 'RobertaTokenizer',
           'xlm-roberta': 'XLMRobertaTokenizer', 'altclip': 'XLMRobertaTokenizer',
           **dict.fromkeys(('bert', 'chinese_clip', 'flava', 'align', 'blip'), 'BertTokenizer')}
OPENAI_MERGES = dict(model='https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz',
                     sha256='924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a')
_FILES = ('tokenizer.json', 'spiece.model', 'vocab.txt', 'merges.txt', 'sentencepiece.bpe.model')
_PADS = {'CLIPTokenizer': '<|endoftext|>', 'BertTokenizer': '[PAD]'}  # '<pad>' elsewhere


def describe(folder: str | Path) -> dict[str, Any] | None:
    """The tokenizer of a folder of transformers, with the ids that transformers gives with padding='max_length' and truncation=True;
    None if the folder has none.

    Raises:
        WeightsError: it has settings that no tokenizer of ours has, or lacks a file.
    """
    folder = Path(folder)
    config, model = json_mapping(folder / 'tokenizer_config.json'), json_mapping(folder / 'config.json')
    model_type = model.get('model_type', '')
    if model_type == 'vision-text-dual-encoder':
        model_type = model.get('text_config', {}).get('model_type', '')
    kind = (config.get('tokenizer_class') or CLASSES.get(model_type, '')).removesuffix('Fast')
    if model_type == 'siglip2':  # whatever its file says: published ones name Gemma's, which does not lower the case
        kind = 'Siglip2Tokenizer'
    if not any((folder / name).is_file() for name in _FILES):
        return None
    if config.get('truncation_side', 'right') != 'right':
        raise WeightsError(f'{folder / "tokenizer_config.json"}: truncation_side: found {config["truncation_side"]!r}; valid: right')
    special = json_mapping(folder / 'special_tokens_map.json') | config
    return {'SiglipTokenizer': _siglip, 'BertTokenizer': _bert, 'CLIPTokenizer': _clip, 'RobertaTokenizer': _roberta,
            'XLMRobertaTokenizer': _xlm_roberta}.get(kind, _library)(folder, kind, special)


def _siglip(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    model = _file(folder, 'spiece.model', kind)
    if not config.get('do_lower_case', True):
        raise WeightsError(f'{folder}: do_lower_case: false is not possible for SigLIP\'s tokenizer')
    ends = _piece(config, 'pad_token', '</s>') == _piece(config, 'eos_token', '</s>')
    return dict(name='sentencepiece', model=model, canonicalize='joined', pad='eos' if ends else 'pad')


def _bert(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    lower = config.get('do_lower_case', True)
    plain = config.get('strip_accents') is None and config.get('tokenize_chinese_chars', True)
    if (folder / 'vocab.txt').is_file() and plain and config.get('padding_side', 'right') == 'right':
        return dict(name='wordpiece', model=str(folder / 'vocab.txt'), lower=lower)
    found = _library(folder, kind, config)
    told = json_mapping(folder / 'tokenizer.json').get('normalizer') or {}
    wanted = dict(lowercase=lower, strip_accents=config.get('strip_accents'),
                  handle_chinese_chars=config.get('tokenize_chinese_chars', True))
    for name, value in wanted.items():
        if told.get(name, value) != value:
            raise WeightsError(f'{folder}: {name} is {told[name]!r} in tokenizer.json and {value!r} in tokenizer_config.json')
    return found


def _clip(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / 'tokenizer.json').is_file():
        return _library(folder, kind, config)
    from bigvlm.data.tokenizers.clip_bpe import ClipBpe
    spec = dict(name='clip_bpe', model=_file(folder, 'merges.txt', kind), clean='nfc', pad='eot')
    ids = json_mapping(folder / 'vocab.json')
    if ids != {piece: i for i, piece in enumerate(ClipBpe(spec['model']).pieces)}:
        raise WeightsError(f'{folder}: vocab.json does not number the pieces as OpenAI does (bytes, bytes that end a word, merges, start, '
                           'end), so tokenizer.json is needed')
    if _piece(config, 'pad_token', _PADS[kind]) != _PADS[kind]:
        raise WeightsError(f'{folder}: pad_token {_piece(config, "pad_token", "")!r} needs tokenizer.json')
    return spec


def _roberta(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / 'tokenizer.json').is_file():
        return _library(folder, kind, config)
    _file(folder, 'vocab.json', kind)
    _file(folder, 'merges.txt', kind)
    if config.get('add_prefix_space', False):
        raise WeightsError(f'{folder}: add_prefix_space: true needs tokenizer.json')
    return dict(name='hf', model=str(folder), pad=_piece(config, 'pad_token', '<pad>'))


def _xlm_roberta(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / 'tokenizer.json').is_file():
        return _library(folder, kind, config)
    return dict(name='sentencepiece', model=_file(folder, 'sentencepiece.bpe.model', kind), fairseq=True)


def _library(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """By tokenizer.json."""
    spec = dict(name='hf', model=_file(folder, 'tokenizer.json', kind), pad=_piece(config, 'pad_token', _PADS.get(kind, '<pad>')))
    if kind == 'Siglip2Tokenizer':
        spec['lower'] = True
    if (side := config.get('padding_side') or ('left' if kind == 'Siglip2Tokenizer' else 'right')) != 'right':
        spec['side'] = side
    if kind in (*_PADS, 'RobertaTokenizer', 'XLMRobertaTokenizer'):  # their files always say what begins and ends a text
        return spec
    added = [name for name in ('bos', 'eos') if config.get(f'add_{name}_token')]
    if 'add_bos_token' in config or 'add_eos_token' in config:
        spec['adds'] = 'both' if len(added) == 2 else added[0] if added else 'none'
    named = [*added, *(['eos'] if config.get('eos_token') else [])]
    spec |= {name: _piece(config, f'{name}_token', '') for name in dict.fromkeys(named)}
    return spec


def describe_open_clip(folder: str | Path, text_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer of a model of open_clip by ``text_cfg`` of its configuration; its files, if it needs any, are in ``folder``.

    OpenAI's list of merges is taken from ``bpe_path``, the folder, an installed open_clip, or else from where OpenAI publishes it.

    Raises:
        WeightsError: settings that no tokenizer of ours has, or files that are not there.
    """
    folder, options = Path(folder), dict(text_cfg.get('tokenizer_kwargs') or {})
    clean = options.pop('clean', 'whitespace' if text_cfg.get('hf_tokenizer_name') else 'lower')
    if text_cfg.get('tokenizer_mode'):
        options['tokenizer_mode'] = text_cfg['tokenizer_mode']
    bpe_path = options.pop('bpe_path', '')
    if wrong := [name for name, value in options.items() if value]:
        raise WeightsError(f'text_cfg: {wrong[0]}={options[wrong[0]]!r} is not possible here')
    if not text_cfg.get('hf_tokenizer_name'):
        if clean != 'lower':
            raise WeightsError(f"text_cfg: tokenizer_kwargs: clean={clean!r} is not possible with OpenAI's pieces, only 'lower'")
        return dict(name='clip_bpe', **_openai_merges(folder, bpe_path))
    spec = describe(folder)
    if spec is None:
        raise WeightsError(f'{folder}: the files of tokenizer {text_cfg["hf_tokenizer_name"]!r} are not there; put them there')
    if spec['name'] == 'sentencepiece' and clean == 'canonicalize' and spec.get('canonicalize'):
        return spec | dict(canonicalize=True, clean='whitespace')
    if spec['name'] != 'clip_bpe' or clean not in ('whitespace', 'lower'):
        return spec | dict(clean=clean)
    return spec | dict(clean='lower')


def _openai_merges(folder: Path, bpe_path: str) -> dict[str, str]:
    name = 'bpe_simple_vocab_16e6.txt.gz'
    installed = importlib.util.find_spec('open_clip')
    places = [folder / bpe_path] if bpe_path else [folder / name, folder / 'merges.txt']
    if not bpe_path and installed and installed.origin:
        places.append(Path(installed.origin).parent / name)
    found = next((str(path) for path in places if path.is_file()), '')
    if bpe_path and not found:
        raise WeightsError(f'text_cfg: tokenizer_kwargs: bpe_path: no file {bpe_path!r}')
    return dict(model=found) if found else dict(OPENAI_MERGES)


def _piece(config: Mapping[str, Any], key: str, default: str) -> str:
    """A special piece's name: a text, or a mapping with its content."""
    found = config.get(key) or default
    return found['content'] if isinstance(found, Mapping) else found


def _file(folder: Path, name: str, kind: str) -> str:
    if not (folder / name).is_file():
        raise WeightsError(f'{folder}: {kind or "the tokenizer"} needs {name}, which is not there')
    return str(folder / name)
