"""Products of int8 rows with blocks of 32 weights, in vector registers: Numba intrinsics for AVX-512 with VNNI.

Each works on two strips of 16 outputs (`_blocks` has the layout) and takes whole rows: the float32 sums never leave the
registers before they are done, so a row's result depends neither on how many rows there are nor on how they are tiled.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._simd import F32, I8, I32, I64, LANES

F16, I16 = ir.HalfType(), ir.IntType(16)
_SUMS, _FLOATS, _BYTES = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES), ir.VectorType(I8, 64)
_HALVES = ir.VectorType(F16, LANES)
_DOT = "vpdpbusd $2, $3, $0"
#: words of four inputs in a block
_WORDS = 8
#: of a kind of block: bytes of a strip's block, bytes before its numbers, log2 of what is added to stored numbers
LAYOUTS = {"q8_0": (544, 32, 7), "q4_0": (288, 32, 3), "q4_1": (320, 64, None)}


def has_tiles():
    """Whether kernels are compiled for a CPU that has the instructions."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return {"+avx512f", "+avx512vnni"} <= set(features.split(","))


class Code:
    """Emits loads, stores and products at addresses."""

    def __init__(self, builder):
        self.builder = builder
        multiply_add = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, multiply_add, "llvm.fma.v16f32")
        self.dot = ir.InlineAsm(ir.FunctionType(_SUMS, [_SUMS, _SUMS, _SUMS]), _DOT, "=v,0,v,v")

    def at(self, base, offset):
        return self.builder.add(base, ir.Constant(I64, offset)) if offset else base

    def load(self, address, of, align=4):
        return self.builder.load(self.builder.inttoptr(address, of.as_pointer()), align=align)

    def store(self, value, address, align=4):
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=align)

    def spread(self, scalar):
        vector = ir.VectorType(scalar.type, LANES)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_SUMS, [0] * LANES))

    def rows(self, first, stride, n_rows):
        found = [first]
        for _ in range(n_rows - 1):
            found.append(self.builder.add(found[-1], stride))
        return found

    def factors(self, address):
        return self.builder.fpext(self.load(address, _HALVES, 2), _FLOATS)

    def words(self, kind, numbers):
        """(word, its 16 outputs) of the numbers of a strip's block, in the order in which they are read."""
        builder = self.builder
        for i in range(_WORDS if kind == "q8_0" else _WORDS // 2):
            read = self.load(self.at(numbers, 64 * i), _SUMS, 1)
            if kind == "q8_0":
                yield i, read
            else:
                low = ir.Constant(_SUMS, [0x0F0F0F0F] * LANES)
                yield i, builder.and_(read, low)
                yield i + _WORDS // 2, builder.and_(builder.lshr(read, ir.Constant(_SUMS, [4] * LANES)), low)

    def signed(self, numbers, shift):
        """Bytes of words, less what was added to them: 2^shift, or nothing. Each stays a byte."""
        builder = self.builder
        if shift is None:
            return numbers
        if shift < 7:
            numbers = builder.add(numbers, ir.Constant(_SUMS, [(128 - 2**shift) * 0x01010101] * LANES))
        return builder.xor(numbers, ir.Constant(_SUMS, [0x80808080] * LANES))


class Loop:
    """A loop over blocks, at least one, with values that go round; `close` says what they become."""

    def __init__(self, builder, n_blocks, begin):
        self.builder, self.n_blocks = builder, n_blocks
        entry, self.body = builder.block, builder.append_basic_block("block")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.count = builder.phi(I64)
        self.count.add_incoming(ir.Constant(I64, 0), entry)
        self.values = [builder.phi(value.type) for value in begin]
        for phi, value in zip(self.values, begin, strict=True):
            phi.add_incoming(value, entry)

    def close(self, values):
        builder = self.builder
        following = builder.add(self.count, ir.Constant(I64, 1))
        for phi, value in zip([self.count, *self.values], [following, *values], strict=True):
            phi.add_incoming(value, builder.block)
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", following, self.n_blocks), self.body, done)
        builder.position_at_end(done)


def block_tile(kind, n_rows):
    """An intrinsic f(q, scales, sums, weights, strip, out, ldo, n_blocks) on addresses and bytes:

    out (n_rows, 32) float32 = rows of int8 blocks @ two strips, `strip` bytes apart, as they are stored.
    q (n_rows, n_blocks, 32) int8, scales and sums (n_rows, n_blocks) float32 and int32; `kind`: a key of LAYOUTS.
    """
    n_bytes, before, shift = LAYOUTS[kind]

    def generate(context, builder, signature, arguments):
        q, scales, sums, weights, strip, out, ldo, n_blocks = arguments
        code = Code(builder)
        lines = builder.shl(n_blocks, ir.Constant(I64, 2))
        q_rows = code.rows(q, builder.shl(n_blocks, ir.Constant(I64, 5)), n_rows)
        scale_rows, sum_rows = code.rows(scales, lines, n_rows), code.rows(sums, lines, n_rows)
        zero = ir.Constant(_FLOATS, [0.0] * LANES)
        begin = [weights, builder.add(weights, strip), *[zero] * (2 * n_rows)]
        loop = Loop(builder, n_blocks, begin)
        strips, totals = loop.values[:2], loop.values[2:]
        place, line = builder.shl(loop.count, ir.Constant(I64, 5)), builder.shl(loop.count, ir.Constant(I64, 2))
        row_sums = [code.load(builder.add(row, line), I32) for row in sum_rows]
        starts = _starts(code, row_sums, shift)
        dots = [[start] * 2 for start in starts]
        inputs = [builder.add(row, place) for row in q_rows]
        numbers = [code.words(kind, code.at(one, before)) for one in strips]
        for (word, first), (_, second) in zip(*numbers, strict=True):
            for i, row in enumerate(inputs):
                x = code.spread(code.load(code.at(row, 4 * word), I32))
                dots[i] = [builder.call(code.dot, [dots[i][s], x, w]) for s, w in enumerate((first, second))]
        factors = [code.factors(one) for one in strips]
        least = [code.factors(code.at(one, 32)) for one in strips] if shift is None else []
        row_scales = [code.load(builder.add(row, line), F32) for row in scale_rows]
        new = _added(code, totals, dots, factors, least, row_scales, row_sums)
        loop.close([*(code.at(one, n_bytes) for one in strips), *new])
        _store(code, new, out, ldo, n_rows)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, q, scales, sums, weights, strip, out, ldo, n_blocks):
        return types.void(*[types.int64] * 8), generate

    return tile


def panel_tile(has_least, n_rows):
    """An intrinsic f(q, scales, starts, panel, out, ldo, n_blocks): `block_tile` on two strips that `unpack_strips`
    unpacked.

    has_least: whether blocks have a least weight. Then starts is the rows' sums, else what sums of products begin
    with: minus what was added to stored numbers, times the sums.
    """
    per_block = panel_bytes(has_least)
    before = 256 if has_least else 128

    def generate(context, builder, signature, arguments):
        q, scales, starts, panel, out, ldo, n_blocks = arguments
        code = Code(builder)
        lines = builder.shl(n_blocks, ir.Constant(I64, 2))
        q_rows = code.rows(q, builder.shl(n_blocks, ir.Constant(I64, 5)), n_rows)
        scale_rows, start_rows = code.rows(scales, lines, n_rows), code.rows(starts, lines, n_rows)
        loop = Loop(builder, n_blocks, [panel, *[ir.Constant(_FLOATS, [0.0] * LANES)] * (2 * n_rows)])
        here, totals = loop.values[0], loop.values[1:]
        place, line = builder.shl(loop.count, ir.Constant(I64, 5)), builder.shl(loop.count, ir.Constant(I64, 2))
        row_starts = [code.load(builder.add(row, line), I32) for row in start_rows]
        zero = ir.Constant(_SUMS, [0] * LANES)
        dots = [[zero if has_least else code.spread(start)] * 2 for start in row_starts]
        inputs = [builder.add(row, place) for row in q_rows]
        for word in range(_WORDS):
            pair = [code.load(code.at(here, before + 64 * (2 * word + s)), _SUMS, 64) for s in range(2)]
            for i, row in enumerate(inputs):
                x = code.spread(code.load(code.at(row, 4 * word), I32))
                dots[i] = [builder.call(code.dot, [dots[i][s], x, w]) for s, w in enumerate(pair)]
        factors = [code.load(code.at(here, 64 * s), _FLOATS, 64) for s in range(2)]
        least = [code.load(code.at(here, 128 + 64 * s), _FLOATS, 64) for s in range(2)] if has_least else []
        row_scales = [code.load(builder.add(row, line), F32) for row in scale_rows]
        new = _added(code, totals, dots, factors, least, row_scales, row_starts)
        loop.close([code.at(here, per_block), *new])
        _store(code, new, out, ldo, n_rows)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, q, scales, starts, panel, out, ldo, n_blocks):
        return types.void(*[types.int64] * 7), generate

    return tile


def panel_bytes(has_least):
    """Of a block of two strips, unpacked: float32 factors (and least weights), then its words, strip by strip."""
    return 1152 + 128 * has_least


def unpack_strips(kind, signed=False):
    """An intrinsic f(weights, strip, panel, n_blocks): two strips, `strip` bytes apart, as `panel_tile` reads them.

    signed: what was added to stored numbers is taken off.
    """
    n_bytes, before, shift = LAYOUTS[kind]
    has_least = shift is None

    def generate(context, builder, signature, arguments):
        weights, strip, panel, n_blocks = arguments
        code = Code(builder)
        loop = Loop(builder, n_blocks, [weights, builder.add(weights, strip), panel])
        *strips, here = loop.values
        for s, one in enumerate(strips):
            code.store(code.factors(one), code.at(here, 64 * s), 64)
            if has_least:
                code.store(code.factors(code.at(one, 32)), code.at(here, 128 + 64 * s), 64)
            for word, numbers in code.words(kind, code.at(one, before)):
                numbers = code.signed(numbers, shift) if signed else numbers
                code.store(numbers, code.at(here, (256 if has_least else 128) + 64 * (2 * word + s)), 64)
        loop.close([*(code.at(one, n_bytes) for one in strips), code.at(here, panel_bytes(has_least))])
        return context.get_dummy_value()

    @intrinsic
    def unpack(typingctx, weights, strip, panel, n_blocks):
        return types.void(*[types.int64] * 4), generate

    return unpack


def _starts(code, row_sums, shift):
    """What sums of products begin with: stored numbers are too large by 2^shift, or not at all."""
    if shift is None:
        return [ir.Constant(_SUMS, [0] * LANES)] * len(row_sums)
    amount = ir.Constant(I32, shift)
    return [code.spread(code.builder.neg(code.builder.shl(total, amount))) for total in row_sums]


def _added(code, totals, dots, factors, least, row_scales, row_sums):
    """totals + the products of a block, scaled."""
    builder, new = code.builder, []
    for i, scale in enumerate(row_scales):
        spread = code.spread(scale)
        share = code.spread(builder.fmul(scale, builder.sitofp(row_sums[i], F32))) if least else None
        for s in range(2):
            product = builder.sitofp(dots[i][s], _FLOATS)
            total = builder.call(code.fma, [product, builder.fmul(factors[s], spread), totals[2 * i + s]])
            new.append(builder.call(code.fma, [least[s], share, total]) if least else total)
    return new


def _store(code, totals, out, ldo, n_rows):
    for i, row in enumerate(code.rows(out, ldo, n_rows)):
        for s in range(2):
            code.store(totals[2 * i + s], code.at(row, 64 * s))
