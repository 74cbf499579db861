"""What tools/data.py shows of examples and statistics, as lines and as pages."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigvlm.core import parts
from bigvlm.data.bad import BadExample
from bigvlm.data.dataset import Dataset
from bigvlm.data.prepare.drawn import drawn
from bigvlm.data.prepare.stats import Stats
from bigvlm.report import data_page
from bigvlm.report.data_page import Example, Side

_IMAGE = ('width', 'height', 'aspect', 'bytes')
_LOG = ('width', 'height', 'bytes', 'aspect', 'characters')  # spread over orders of magnitude


def example(dataset: Dataset, index: int, epoch: int = 0, raw: bool = False, decoders: Mapping[str, Callable] | None = None) -> Example:
    """One example of a data set as its source has it and, unless `raw`, after its ops; `decoders`: see below."""
    facts = [('index', f'{index:,}'), ('', dataset.source.describe(index))]
    sides = []
    try:
        sides.append(Side('source', *drawn(dataset.source[index])))
        if not raw and dataset.ops:
            sides.append(Side('after the ops', *drawn(dataset.example(index, epoch, substitute=False), decoders)))
    except BadExample as bad:
        return Example(facts, sides, f'unusable: {bad}')
    return Example(facts, sides)


def drawn_example(draws: Any, number: int, row: int, decoders: Mapping[str, Callable] | None = None) -> Example:
    """The example at a row of a batch: from where, the source's and what the step got; a substitute is named."""
    name, epoch, index = draws.at(number, row)
    dataset, got = draws.datasets[name], draws.example(number, row)
    facts = [('row', str(row)), ('data set', name), ('index', f'{index:,}'), ('', dataset.source.describe(index)), ('epoch', str(epoch))]
    shown = int(got['id'][1])
    if shown != index:
        facts.append(('unusable, replaced by', f'{shown:,} {dataset.source.describe(shown)}'))
    # The same draw without the ops, which may have dropped the caption.
    bare = {'source': {}, 'max_bad': dataset.lost_log.max_bad}
    before = Dataset(bare, dataset.name, seed=dataset.seed, number=dataset.number, like=dataset).example(shown, epoch)
    if 'caption' in before:
        facts.append(('caption', before['caption']))
    source = {key: value for key, value in before.items() if key not in ('caption', 'id')}
    return Example(facts, [Side('source', *drawn(source)), Side('what the step got', *drawn(got, decoders))])


def decoders(ops: Sequence[Mapping[str, Any]], tokenizers: Mapping[str, Any]) -> dict[str, Callable]:
    """Example key -> ids to text, for the keys that ops with a tokenizer name in their fields."""
    found: dict[str, Callable] = {}
    for op in ops:
        fields = {key: p.default for key, p in parts.fields(parts.find('bigvlm.data.ops', op['name'], 'ops')).items()} | dict(op)
        if (tokenizer := fields.get('tokenizer')) in tokenizers:
            found |= {value: tokenizers[tokenizer].decode for key, value in fields.items()
                      if isinstance(value, str) and key not in ('name', 'tokenizer')}
    return found


def line(shown: Example) -> str:
    """An example in one line, tabs between."""
    facts = [f'{label} {text}'.strip() for label, text in shown.facts]
    captions = [text for side in shown.sides[:1] for label, text in side.lines if label == 'captions'][:1]
    said = captions if not any(label == 'caption' for label, _ in shown.facts) else []
    return '\t'.join([*facts, *said, *([shown.error] if shown.error else [])])


def examples_page(title: str, about: Sequence[tuple[str, str]], heading: str, shown: Sequence[Example]) -> str:
    return data_page.page(title, about, [data_page.examples(heading, shown)])


def stats_page(found: Stats) -> str:
    """Everything that was counted, as histograms, bars and lists."""
    about = [('examples', f'{found.examples:,} of {found.total:,}'), ('fingerprint', found.fingerprint),
             ('read', f'{found.examples / max(found.seconds, 1e-9):,.0f} examples/s'), ('distinct captions', f'{found.distinct:.2%}')]
    about += [(f'padding of {budget} tokens', f'{share:.1%}') for budget, share in found.padding.items()]
    drawn_ = {name: data_page.histogram(name, values, name in _LOG) for name, values in found.columns.items()}
    images, texts = ([card for name, card in drawn_.items() if (name in _IMAGE) == image] for image in (True, False))
    bars = [data_page.names(name, counts, 0 if name == 'script' else found.examples) for name, counts in found.counts.items()]
    if found.repeated:
        bars.append(data_page.names('captions that occur most often', dict(found.repeated), len(found.columns['characters'])))
    return data_page.page(found.name, about, [data_page.charts('Images', images), data_page.charts('Captions', texts),
                                              data_page.charts('Counts', bars), data_page.listed('Unusable', found.unusable)])
