"""A plan as text, readable at a glance."""

from collections.abc import Mapping, Sequence

from bigvlm.plan.plan import Plan

MIB, GIB = 2 ** 20, 2 ** 30


def size(value: float) -> str:
    return f'{value / GIB:.3f} GiB' if abs(value) >= GIB / 10 else f'{value / MIB:.2f} MiB'


def table(rows: Sequence[Sequence[str]], indent: str = '  ') -> str:
    """Columns under each other; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return '\n'.join(indent + line.rstrip() for line in lines)


def report(plan: Plan) -> str:
    """Everything about one plan."""
    mesh = ', '.join(f'{axis} {n}' for axis, n in plan.mesh.items() if n > 1) or 'one device'
    remat = ', '.join(f'{tower} {name}' for tower, name in plan.remat.items())
    head = [f'{plan.topology}: {plan.devices} devices ({plan.device_kind}), mesh {mesh}',
            f'batch {plan.batch:,} of {plan.kind} in {plan.micro} micro-batch{"es" if plan.micro > 1 else ""}; '
            f'rematerialisation: {remat or "none"}; compiled in {plan.compile_seconds:.0f} s']
    parts = [*head, '', memory(plan), '', products(plan), '', transfers(plan)]
    if plan.estimate is not None:
        parts += ['', step_time(plan), '', schedule(plan)]
    return '\n'.join(parts + [f'note: {note}' for note in plan.notes])


def verdict(plan: Plan) -> str:
    m = plan.memory
    least = 'at least ' if m.refused is not None else ''
    if m.fits:
        return f'fits, {size(m.room)} to spare'
    return f'does not fit, by {least}{size(-m.room)}'


def memory(plan: Plan) -> str:
    m = plan.memory
    rows = [(name, size(n)) for name, n in m.state.items() if n]
    if m.refused is None:
        rows += [("the compiler's padding", size(max(0, m.arguments - sum(m.state.values())))), ('arguments', size(m.arguments)),
                 ('temporaries', size(m.temporaries)), ('output beside them', size(m.output)), ('code', size(m.code)),
                 ('total', size(m.needed))]
    else:
        rows.append(('needed (compiler)', f'≥ {size(m.needed)}'))
    rows.append((f'limit ({m.limit_source})', size(m.limit)))
    return f'Memory per device: {verdict(plan)}\n{table(rows)}'


def products(plan: Plan) -> str:
    ratio = plan.compiled_flops / plan.model_flops
    rows = [('model', f'{plan.model_flops / 1e12:.2f} TFLOP'),
            ('compiled step', f'{plan.compiled_flops / 1e12:.2f} TFLOP'), ('compiled ÷ model', f'{ratio:.3f}')]
    return f'Matrix products per device and step\n{table(rows)}'


def axes_text(axes: Sequence[str]) -> str:
    return ' × '.join(axes) or '?'


def transfers(plan: Plan) -> str:
    lines = ['Collectives per device and step']
    if plan.traffic is not None:
        rows = [('kind', 'over', 'devices', 'in the text', 'executed', 'MiB', 'MiB sent', 'overlapped')]
        rows += [(r['kind'], axes_text(r['axes']), str(r['group']), str(r['count']), f'{r["times"]:,}', f'{r["bytes"] / MIB:.2f}',
                  f'{r["wire"] / MIB:.2f}', 'yes' if r['asynchronous'] else 'no') for r in plan.traffic.table()]
        rows.append(('all', '', '', '', '', f'{plan.traffic.bytes / MIB:.2f}', f'{plan.traffic.wire / MIB:.2f}', ''))
        lines.append(table(rows))
        lines += [f'  ERROR: the loop {name} has collectives and its length is not known: it is counted once, the bytes are too few'
                  for name in plan.traffic.unknown]
    rows = [('least, from the recipe', 'over', 'for', 'MiB', 'MiB sent')]
    rows += [(r.kind, axes_text(r.axes), r.what, f'{r.bytes / MIB:.2f}', f'{r.wire / MIB:.2f}') for r in plan.minimum]
    rows.append(('all', '', '', f'{plan.minimum_bytes / MIB:.2f}', f'{plan.minimum_wire / MIB:.2f}'))
    lines.append(table(rows))
    if plan.traffic is not None and plan.minimum_bytes:
        lines.append(f'  compiled ÷ least: {plan.traffic.bytes / plan.minimum_bytes:.3f} of bytes, '
                     f'{plan.traffic.wire / plan.minimum_wire:.3f} of bytes sent')
    if plan.mesh.get('tensor', 1) > 1:
        lines.append("  tensor parallelism's exchange of activations is in the collectives and not in the least")
    return '\n'.join(lines)


def step_time(plan: Plan) -> str:
    e = plan.estimate
    rows = [('products', _ms(e.compute), f'{e.efficiency:g} (assumed) of {plan.peak_flops / 1e12:.0f} TFLOP/s'),
            ('memory', _ms(e.memory), 'arguments and temporaries read and written once')]
    rows += [(f'{"permutes" if t.permute else "transfers"} over {axes_text(t.axes)}', _ms(t.seconds),
              f'{size(t.wire)} at {t.bandwidth / 1e9:.1f} GB/s, {"overlapped" if t.asynchronous else "added"}')
             for t in e.transfers if t.seconds > 1e-6]
    rows.append(('step', _ms(e.seconds), f'set by {e.bound_by}, plus what is added'))
    width = max(len(row[0]) for row in rows)
    lines = [f'  {name.ljust(width)}  {ms.rjust(10)}  {why}' for name, ms, why in rows]
    return '\n'.join(['Estimated step time (arithmetic from data sheets, not measured)', *lines])


def schedule(plan: Plan) -> str:
    r = plan.run
    cost = '' if r.cost is None else f', {r.cost:,.0f} at the price given'
    return (f'{r.examples_per_second:,.0f} examples/s, MFU {100 * r.mfu:.1f} %\n'
            f'{r.steps:,} steps, {r.examples / 1e9:.2f} billion examples: {r.hours:,.1f} hours = {r.hours / 24:.2f} days, '
            f'{r.device_hours:,.0f} chip-hours{cost}')


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:,.2f} ms'


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of the docs."""
    keys = list(rows[0])
    lines = ['| ' + ' | '.join(keys) + ' |', '|' + '---|' * len(keys)]
    return '\n'.join(lines + ['| ' + ' | '.join(row[k] for k in keys) + ' |' for row in rows])
