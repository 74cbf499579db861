"""Our tokenizers in the tokenizers library's format (tokenizer.json): the same cleaning, pieces and ends of texts."""

import html
import re
from collections.abc import Mapping
from typing import Any

import ftfy.chardata
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bigvlm.core.foreign import WeightsError
from bigvlm.data.ops.canonicalize import canonical
from bigvlm.data.tokenizers.clip_bpe import ClipBpe
from bigvlm.data.tokenizers.hf import Hf
from bigvlm.data.tokenizers.sentencepiece import SentencePiece
from bigvlm.data.tokenizers.wordpiece import WordPiece

_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENTITIES = ('&amp;', '&lt;', '&gt;', '&quot;', '&nbsp;', '&apos;', '&#39;', '&#039;', '&#x27;', '&#34;')  # the rest are rare in captions
UNIGRAM, _BPE = 1, 2  # of sentencepiece_model.proto: TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER, _BYTE = 1, 3, 4, 6  # ModelProto.SentencePiece.Type


def clip(tokenizer: ClipBpe) -> tokenizers.Tokenizer:
    """With ``clean='nfc'`` what transformers makes of vocab.json and merges.txt. Otherwise it also mends what ftfy and html.unescape mend
    letter by letter (quotes, ligatures, widths, control characters, usual entities), but no words that were wrongly decoded."""
    start, end = tokenizer.pieces[tokenizer.bos_id], tokenizer.pieces[tokenizer.eot_id]
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    found = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=tokenizer.merges, continuing_subword_prefix='', end_of_word_suffix='</w>',
                                            fuse_unk=False, unk_token=end))
    spaces = normalizers.Replace(Regex(r'\s+'), ' ')
    plain = [normalizers.NFC(), spaces, normalizers.Lowercase()]
    found.normalizer = normalizers.Sequence(plain if tokenizer.clean == 'nfc' else [*_mending(), normalizers.NFC(), spaces, *_lower()])
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_CLIP_WORDS), 'removed', invert=True),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False)])
    found.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace('</w>', ' '), decoders.Strip(' ', 0, 1)])
    found.add_special_tokens([start, end])
    found.post_processor = processors.RobertaProcessing((end, tokenizer.eot_id), (start, tokenizer.bos_id), False, False)
    return found


def _mending() -> list[normalizers.Normalizer]:
    """In ftfy's order."""
    letters = {c: bytes([c]).decode('windows-1252', 'ignore') for c in range(128, 160)}  # control codes that never stand in a text
    letters = {c: letter for c, letter in letters.items() if letter} | ftfy.chardata.LIGATURES | ftfy.chardata.WIDTH_MAP
    removed = ''.join(map(chr, ftfy.chardata.CONTROL_CHARS))
    return [*(normalizers.Replace(entity, html.unescape(entity)) for _ in range(2) for entity in _ENTITIES),
            *(normalizers.Replace(chr(letter), becomes) for letter, becomes in letters.items()),
            normalizers.Replace(Regex(ftfy.chardata.SINGLE_QUOTE_RE.pattern), "'"),
            normalizers.Replace(Regex(ftfy.chardata.DOUBLE_QUOTE_RE.pattern), '"'),
            normalizers.Replace(Regex(f'[{re.escape(removed)}]'), '')]


def _lower() -> list[normalizers.Normalizer]:
    """Python's: with the small sigma that ends a word."""
    return [normalizers.Replace(Regex(r'(?<=\p{L})Σ(?!\p{L})'), 'ς'), normalizers.Lowercase()]


def sentencepiece(tokenizer: SentencePiece) -> tokenizers.Tokenizer:
    """The model's pieces and normalization after our cleaning; no normalization that looks at more than 5 letters at once. Texts that are
    too long keep their end, as with eos='sticky'.

    Raises:
        WeightsError: eos='yes', or a kind of model (of characters, of words) that the library does not have.
    """
    if tokenizer.eos == 'yes':
        raise WeightsError("tokenizer: eos='yes' cuts the end of a text that is too long, which tokenizer.json cannot do; use eos='sticky'")
    proto = parsed(tokenizer)
    names = [piece.piece for piece in proto.pieces]
    found = tokenizers.Tokenizer(_model(proto))
    found.normalizer = normalizers.Sequence([*_cleaning(tokenizer), *_normalization(proto.normalizer_spec)])
    prefix = [decoders.Strip(' ', 1, 0)] if proto.normalizer_spec.add_dummy_prefix else []
    found.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *prefix])
    for piece in proto.pieces:  # in the order of their ids
        if piece.type in (_CONTROL, _USER):
            found.add_tokens([tokenizers.AddedToken(piece.piece, special=piece.type == _CONTROL, normalized=piece.type == _USER)])
    ends = {names[i]: i for i in (tokenizer.bos_id, tokenizer.eot_id) if i is not None and i >= 0}
    before = [] if tokenizer.bos_id is None else [names[tokenizer.bos_id]]
    after = [] if tokenizer.eos == 'no' else [names[tokenizer.eot_id]]
    if before or after:
        found.post_processor = processors.TemplateProcessing(single=[*before, '$A', *after], special_tokens=list(ends.items()))
    return found


def parsed(tokenizer: SentencePiece) -> Any:
    """The model's protocol buffer, ModelProto of sentencepiece_model.proto."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise WeightsError(f'tokenizer: reading a SentencePiece model to write tokenizer.json needs protobuf ({error})') from None
    return sentencepiece_model_pb2.ModelProto.FromString(tokenizer.proto)


def gemma(tokenizer: SentencePiece) -> tokenizers.Tokenizer:
    """For transformers' Siglip2Tokenizer, which takes pieces, merges and ends from the file and nothing else.

    Raises:
        WeightsError: a model that is no byte-pair one with bytes and without normalization, as Gemma's is, or a cleaning that is not lower.
    """
    proto = parsed(tokenizer)
    spec = proto.normalizer_spec
    bytes_ = any(piece.type == _BYTE for piece in proto.pieces)
    if proto.trainer_spec.model_type != _BPE or not bytes_ or spec.add_dummy_prefix or spec.remove_extra_whitespaces \
            or spec.precompiled_charsmap or tokenizer.canonicalize or not tokenizer.lower:
        raise WeightsError("tokenizer: transformers opens SigLIP 2 with Gemma's kind of tokenizer only (byte pairs, bytes for unknown "
                           "letters, no normalization but lower=True); export this one as 'siglip'")
    return sentencepiece(tokenizer)


def wordpiece(tokenizer: WordPiece) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer.from_str(tokenizer.encoder.to_str())
    found.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[
        ('[CLS]', tokenizer.bos_id), ('[SEP]', tokenizer.eot_id)])
    return found


def library(tokenizer: Hf, lower: bool) -> tokenizers.Tokenizer:
    """Its own, with the ends of texts that its fields ask for; ``lower`` puts the change of case before everything else."""
    found = tokenizers.Tokenizer.from_str(tokenizer.encoder.to_str())
    if lower:
        before = [found.normalizer] if found.normalizer is not None else []
        found.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    if tokenizer.adds != 'file':
        ends = {'bos': tokenizer.bos_id, 'eos': tokenizer.eot_id}
        used = {found.id_to_token(i): i for key, i in ends.items() if tokenizer.adds in (key, 'both')}
        bos, eos = ([found.id_to_token(ends[key])] * (tokenizer.adds in (key, 'both')) for key in ends)
        found.post_processor = processors.TemplateProcessing(single=[*bos, '$A', *eos], special_tokens=list(used.items()))
    return found


def _model(proto: Any) -> models.Model:
    names = [piece.piece for piece in proto.pieces]
    bytes_ = any(piece.type == _BYTE for piece in proto.pieces)
    if proto.trainer_spec.model_type == UNIGRAM:
        return models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], proto.trainer_spec.unk_id, bytes_)
    if proto.trainer_spec.model_type != _BPE:
        raise WeightsError('tokenizer: only byte-pair and unigram models of SentencePiece can be written as tokenizer.json')
    ids = {name: i for i, name in enumerate(names)}
    return models.BPE(vocab=ids, merges=merges({piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}),
                      unk_token=names[proto.trainer_spec.unk_id], fuse_unk=True, byte_fallback=bytes_)


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose joint piece has the best score: all pairs that make a piece, the best piece's first."""
    return [(piece[:cut], piece[cut:]) for piece in sorted(scores, key=scores.__getitem__, reverse=True)
            for cut in range(1, len(piece)) if piece[:cut] in scores and piece[cut:] in scores]


def _cleaning(tokenizer: SentencePiece) -> list[normalizers.Normalizer]:
    if not tokenizer.canonicalize:
        return _lower() if tokenizer.lower else []
    removed = ''.join(c for c in map(chr, range(33, 127)) if c != '_' and not canonical(c))
    return [normalizers.Replace('_', '' if tokenizer.canonicalize == 'joined' else ' '),
            normalizers.Replace(Regex(f'[{re.escape(removed)}]'), ''), normalizers.Replace(Regex(r'\s+'), ' '), *_lower()]


def _normalization(spec: Any) -> list[normalizers.Normalizer]:
    found = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        found += [normalizers.Strip(), normalizers.Replace(Regex(' {2,}'), ' ')]
    # Not the library's Metaspace: it puts no space before a text that begins with one.
    return [*found, *([normalizers.Prepend('▁')] if spec.add_dummy_prefix else []), normalizers.Replace(' ', '▁')]
