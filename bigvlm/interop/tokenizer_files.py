"""Our tokenizers as files that transformers and open_clip open as they are."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from bigvlm.core import parts
from bigvlm.core.foreign import WeightsError
from bigvlm.data.tokenizers.clip_bpe import ClipBpe
from bigvlm.data.tokenizers.hf import Hf
from bigvlm.data.tokenizers.sentencepiece import SentencePiece
from bigvlm.data.tokenizers.wordpiece import WordPiece
from bigvlm.interop import _pipelines

_OPENAI = 'f61f2adf497e'  # sha256 of OpenAI's merges, one 'a b' per line: its first digits
_ANY = 'PreTrainedTokenizerFast'  # transformers then takes all from tokenizer.json
_COMPANIONS = ('vocab.json', 'merges.txt', 'vocab.txt', 'spiece.model', 'sentencepiece.bpe.model', 'added_tokens.json',
               'special_tokens_map.json')
_MENDED = ('texts with wrongly decoded letters (mojibake) or rare HTML entities get other ids: ours mends them first, '
           'transformers has nothing for it')
_UNMENDED = 'texts with wrongly decoded letters, curly quotes or HTML entities get other ids: open_clip mends them first, ours does not'


@dataclasses.dataclass(frozen=True)
class Written:
    """files: names, in the folder. text_cfg: what belongs into ``text_cfg`` of open_clip_config.json (open_clip only).
    notes: the texts whose ids differ there from ours, in sentences; none if all are the same."""
    files: tuple[str, ...] = ()
    text_cfg: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Files:
    """What a tokenizer becomes. config: of tokenizer_config.json."""
    config: Mapping[str, Any]
    encoder: tokenizers.Tokenizer | None = None
    texts: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write(tokenizer: Any, folder: str | Path, model_type: str, length: int) -> Written:
    """Writes the files of a tokenizer, one of ours or its spec, for texts of ``length`` tokens; ids there are ours, padding included,
    with padding='max_length' and truncation=True.

    ``model_type``: of transformers, or 'open_clip', which finds the files through 'local-dir:FOLDER' and the returned ``text_cfg``.

    Raises:
        WeightsError: the other library has nothing that gives these ids.
    """
    if isinstance(tokenizer, Mapping):
        tokenizer = parts.build('bigvlm.data.tokenizers', tokenizer, 'tokenizer', corpus=None)
    made = {ClipBpe: _clip, SentencePiece: _sentencepiece, WordPiece: _wordpiece, Hf: _library}.get(type(tokenizer))
    if made is None:
        raise WeightsError(f'tokenizer: {type(tokenizer).__name__} cannot be written; valid: clip_bpe, sentencepiece, wordpiece, hf')
    if model_type == 'open_clip' and isinstance(tokenizer, ClipBpe) and _is_openai(tokenizer) and tokenizer.clean == 'lower' \
            and not tokenizer.pad_id:
        return Written()  # open_clip has this one built in
    files = made(tokenizer, model_type)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**files.config, 'model_max_length': length, 'clean_up_tokenization_spaces': False}
    names = {**files.texts, 'tokenizer_config.json': json.dumps(config, indent=2)}
    for name, content in names.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if files.encoder is not None:
        files.encoder.save(str(folder / 'tokenizer.json'))
    written = (*names, *(['tokenizer.json'] if files.encoder is not None else []))
    if model_type != 'open_clip':
        return Written(written, {}, files.notes)
    return _for_open_clip(tokenizer, folder, written)


def _for_open_clip(tokenizer: Any, folder: Path, written: tuple[str, ...]) -> Written:
    """open_clip's HFTokenizer cleans every text before transformers' tokenizer of the folder gets it."""
    clean = tokenizer.clean if tokenizer.clean not in ('', 'nfc') else 'whitespace'
    if isinstance(tokenizer, SentencePiece) and tokenizer.canonicalize is True:
        clean = 'canonicalize'
    notes = [] if tokenizer.clean not in ('', 'nfc') else [_UNMENDED]
    notes += [_padding_note(tokenizer)] if isinstance(tokenizer, ClipBpe) and not tokenizer.pad_id else []
    notes.append(f"hf_tokenizer_name is {folder.resolve().name!r}, which 'local-dir:' ignores; on the hub it must be the repository's name")
    return Written(written, dict(hf_tokenizer_name=folder.resolve().name, tokenizer_kwargs=dict(clean=clean)), tuple(notes))


def _is_openai(tokenizer: ClipBpe) -> bool:
    return hashlib.sha256('\n'.join(map(' '.join, tokenizer.merges)).encode()).hexdigest().startswith(_OPENAI)


def _padding_note(tokenizer: ClipBpe) -> str:
    return (f'padding is id {tokenizer.eot_id} (end of text), ours is 0: that piece stands for text, too, so transformers cannot pad with '
            'it; a causal text tower that is pooled at its first end of text gives the same')


def _clip(tokenizer: ClipBpe, model_type: str) -> _Files:
    start, end = tokenizer.pieces[tokenizer.bos_id], tokenizer.pieces[tokenizer.eot_id]
    standard = tokenizer.clean == 'nfc' or model_type == 'open_clip'  # open_clip mends the texts itself
    config = dict(tokenizer_class='CLIPTokenizer' if standard else _ANY, bos_token=start, eos_token=end, unk_token=end, pad_token=end,
                  padding_side='right', model_input_names=['input_ids', 'attention_mask'])
    texts = {'vocab.json': json.dumps({piece: i for i, piece in enumerate(tokenizer.pieces)}, ensure_ascii=False),
             'merges.txt': '#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in tokenizer.merges)}
    notes = [] if standard else [_MENDED]
    return _Files(config, _pipelines.clip(tokenizer), texts, tuple(notes + ([] if tokenizer.pad_id else [_padding_note(tokenizer)])))


def _wordpiece(tokenizer: WordPiece, model_type: str) -> _Files:
    config = dict(tokenizer_class='BertTokenizer', do_lower_case=tokenizer.lower, padding_side='right', unk_token='[UNK]',
                  **{f'{name}_token': f'[{name.upper()}]' for name in ('sep', 'pad', 'cls', 'mask')})
    texts = {'vocab.txt': ''.join(f'{piece}\n' for piece in tokenizer.pieces)}
    return _Files(config, _pipelines.wordpiece(tokenizer), texts, _mended(tokenizer))


def _sentencepiece(tokenizer: SentencePiece, model_type: str) -> _Files:
    notes = _mended(tokenizer)
    if tokenizer.fairseq:
        if tokenizer.lower or _pipelines.parsed(tokenizer).trainer_spec.model_type != _pipelines.UNIGRAM:
            raise WeightsError("tokenizer: XLM-RoBERTa's is a unigram model of SentencePiece that keeps the case (lower=False)")
        ends = dict(bos='<s>', cls='<s>', eos='</s>', sep='</s>', unk='<unk>', pad='<pad>', mask='<mask>')
        return _Files(dict(tokenizer_class='XLMRobertaTokenizer', padding_side='right', **{f'{k}_token': v for k, v in ends.items()}),
                      None, {'sentencepiece.bpe.model': tokenizer.proto}, notes)
    name = tokenizer.piece
    config = dict(eos_token=name(tokenizer.eot_id) if tokenizer.eot_id >= 0 else None, unk_token=name(tokenizer.unknown_id),
                  pad_token=name(tokenizer.pad_id), padding_side='right', model_input_names=['input_ids'])
    config |= dict(bos_token=name(tokenizer.bos_id)) if tokenizer.bos_id is not None else {}
    if model_type in ('siglip', 'open_clip') and tokenizer.canonicalize and tokenizer.eos == 'sticky' and tokenizer.bos_id is None:
        if tokenizer.canonicalize is True and model_type == 'siglip':
            notes += ("texts with underscores get other ids: ours makes spaces of them, transformers' SiglipTokenizer removes them",)
        return _Files(config | dict(tokenizer_class='SiglipTokenizer', do_lower_case=True), None, {'spiece.model': tokenizer.proto}, notes)
    if model_type == 'siglip2':
        notes += ('Greek words that end with a capital sigma get other ids: ours makes the other small sigma of it',)
        return _Files(config | dict(tokenizer_class='Siglip2Tokenizer'), _pipelines.gemma(tokenizer), {}, notes)
    return _Files(config | dict(tokenizer_class=_ANY), _pipelines.sentencepiece(tokenizer), {}, notes)


def _library(tokenizer: Hf, model_type: str) -> _Files:
    found = tokenizer.folder / 'tokenizer_config.json'
    config = json.loads(found.read_text(encoding='utf-8')) if found.is_file() else {}
    encoder, texts = _pipelines.library(tokenizer, lower=tokenizer.lower and model_type != 'siglip2'), {}
    if model_type == 'siglip2' and not tokenizer.lower:
        raise WeightsError("tokenizer: transformers' Siglip2Tokenizer lowers the case, this one does not (lower=True)")
    name = tokenizer.encoder.id_to_token
    config |= {f'{key}_token': name(i) for key, i in (('bos', tokenizer.bos_id), ('eos', tokenizer.eot_id), ('pad', tokenizer.pad_id))
               if i is not None and (key == 'pad' or f'{key}_token' not in config)}
    config |= dict(padding_side=tokenizer.side)
    changed = tokenizer.adds != 'file' or tokenizer.lower and model_type != 'siglip2'
    if changed or 'tokenizer_class' not in config:
        config |= dict(tokenizer_class='Siglip2Tokenizer' if model_type == 'siglip2' else _ANY)
        config.setdefault('model_input_names', ['input_ids'] if model_type.startswith('siglip') else ['input_ids', 'attention_mask'])
    for key in ('add_bos_token', 'add_eos_token'):
        config.pop(key, None)  # the file says it
    for companion in _COMPANIONS:
        if (tokenizer.folder / companion).is_file():
            texts[companion] = (tokenizer.folder / companion).read_bytes()
    return _Files(config, encoder, texts, _mended(tokenizer))


def _mended(tokenizer: Any) -> tuple[str, ...]:
    return (_MENDED,) if tokenizer.clean else ()
