"""What `astra` sends and makes of it where blocks have maps: codes may be late, and blocks may have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from astra_mpi.costs.wires import Coding, Wire, astra_wire
from astra_mpi.costs.work import Shape, Work


def coded_wires(shape: Shape, coding: Coding) -> list[Wire]:
    """Of all blocks, whose codes come in time; where they have maps, of all but the first, which needs no codes."""
    if coding.codec.has_maps and shape.config.n_layers > 1:
        return mapped_wires(shape, coding, late=False)
    return [astra_wire(shape, coding, i) for i in range(shape.config.n_layers)]


def mapped_wires(shape: Shape, coding: Coding, late: bool) -> list[Wire]:
    """Of all blocks but the first."""
    wires, source, last = list[Wire](), 0, shape.config.n_layers - 1
    for i in range(1, shape.config.n_layers):
        coded, is_late = coding.codec.block_bits(i) > 0, late and coding.codec.is_late(i)
        if coding.codec.predicts:
            comes_late = late and source == i - 1 and coding.codec.is_late(source)
            wire = _predicted(shape, coding, i, source if comes_late else 0, is_late)
        else:
            wire = _carried(shape, coding, i, source, is_late)
        if not coded or (is_late and i == last):
            wire = wire._replace(bits=0, near_bits=0, encode=wire.encode if not coded else Work())
        wires.append(wire._replace(late=is_late, whole=True))
        source = i if coded else source
    return wires


def mean_wire(wires: Sequence[Wire]) -> Wire:
    """The first one, with the work of an average one."""

    def mean(of: Callable[[Wire], Work]) -> Work:
        return sum(map(of, wires), Work()) * (1 / len(wires))

    return wires[0]._replace(
        encode=mean(lambda wire: wire.encode),
        decode=mean(lambda wire: wire.decode),
        expect_own=mean(lambda wire: wire.expect_own),
        expect_far=mean(lambda wire: wire.expect_far),
    )


def _sums(coding: Coding, i: int) -> int:
    (part,) = coding.codec.of(i)
    return int(part.rule.layers(part) + part.rule.head_stages(part))


def _predicted(shape: Shape, coding: Coding, i: int, source: int, late: bool) -> Wire:
    """Codes of what a prediction misses. Late ones, those of `source`, move the states in the next block, before its
    prediction; 0: all have done so."""
    d, wire = shape.config.d_model, astra_wire(shape, coding, i)
    moved = Work(table=_sums(coding, source) * d, elements=d) if source else Work()
    if coding.leaps_over(i, d):
        kv = Work(gemm=(1 + coding.codec.inputs) * shape.project_kv, elements=2 * shape.config.d_kv)
        return wire._replace(encode=Work(), decode=kv, expect_own=Work(), expect_far=moved)
    if not coding.codec.block_bits(i):
        mean = Work(table=d, elements=2 * d)  # of what is missed
        return wire._replace(encode=mean, expect_far=moved + wire.expect_far)
    if not late:
        return wire._replace(expect_far=moved + wire.expect_far)
    expect = Work(states=coding.predictor_numbers(d), elements=2 * d)
    return wire._replace(decode=moved + expect + Work(gemm=shape.project_kv), expect_far=Work())


def _carried(shape: Shape, coding: Coding, i: int, source: int, late: bool) -> Wire:
    """Codes of the tokens themselves: late ones, and those of other blocks, through tables of this one's."""
    wire, kv_width = astra_wire(shape, coding, i), 2 * shape.config.d_kv
    if coding.codec.block_bits(i) and not late:
        return wire
    if not source:
        decode = Work(gemm=shape.project_kv, elements=kv_width)
    elif coding.has_tables:
        decode = Work(table=coding.codec.of(source)[0].codes_per_token * kv_width)
    else:
        decode = Work(gemm=shape.project_kv, table=_sums(coding, source) * shape.config.d_model)
    return wire._replace(decode=decode, encode=wire.encode if coding.codec.block_bits(i) else Work())
