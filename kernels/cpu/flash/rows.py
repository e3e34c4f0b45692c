"""Rows of attention's scores as vector code: their maximum, and their weights narrowed to bfloat16.

For CPUs with AVX512-BF16. Addresses and strides are in bytes; rows are float32, in pairs of vectors of 16 numbers.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from astra_mpi.kernels.cpu._simd import F32, I32, I64, LANES

#: 2^f for 0 <= f < 1: minimax coefficients of f, f^2 .. after 1, relative error 8.3e-8; a maximum's weight is exactly 1
_POWERS = (
    0.6931513118060186,
    0.24016445014454713,
    0.05579991312983602,
    0.009017030295939352,
    0.001867130079404081,
)
_VECTOR = ir.VectorType(F32, LANES)
_NARROW = ir.VectorType(I32, LANES)


def rows_max(n_rows: int):
    """An intrinsic f(scores, stride, bias, biased, n_pairs, out): out[i] = max(out[i], max_j scores[i, j]).

    Of n_rows rows. Where `biased`, bias (32 n_pairs) is added to each first.
    """

    def generate(context, builder, signature, arguments):
        scores, stride, bias, biased, n_pairs, out = arguments
        build = _Build(builder)
        rows = [builder.add(scores, builder.mul(stride, _i64(i))) for i in range(n_rows)]
        lowest = ir.Constant(_VECTOR, [float("-inf")] * LANES)

        def plain(at, highest):
            return [build.max(now, build.load(builder.add(row, at))) for row, now in zip(rows, highest, strict=True)]

        def with_bias(at, highest):
            added = build.load(builder.add(bias, at))
            new = []
            for row, now in zip(rows, highest, strict=True):
                here = builder.add(row, at)
                score = builder.fadd(build.load(here), added)
                build.store(score, here)
                new.append(build.max(now, score))
            return new

        with builder.if_else(builder.icmp_signed("!=", biased, _i64(0))) as (then, otherwise):
            with then:
                one = build.loop(builder.shl(n_pairs, _i64(1)), 64, with_bias, [lowest] * n_rows)
                after_then = builder.block
            with otherwise:
                two = build.loop(builder.shl(n_pairs, _i64(1)), 64, plain, [lowest] * n_rows)
                after_else = builder.block
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            phi = builder.phi(_VECTOR)
            phi.add_incoming(a, after_then)
            phi.add_incoming(b, after_else)
            one[i] = phi
        for i, highest in enumerate(one):
            build.store_scalar(build.max_of(highest, build.load_scalar(out, i)), out, i)
        return context.get_dummy_value()

    return _addressed(generate, 6)


def rows_weights(n_rows: int):
    """An intrinsic f(scores, stride, n_pairs, maxima, sums): scores[i] -> bfloat16 of w = exp(scores[i] - maxima[i]),
    in place from the row's beginning; sums[i] += sum_j w, of w before it is narrowed. n_rows rows.
    """

    def generate(context, builder, signature, arguments):
        scores, stride, n_pairs, maxima, sums = arguments
        build = _Build(builder)
        rows = [builder.add(scores, builder.mul(stride, _i64(i))) for i in range(n_rows)]
        log2e = ir.Constant(F32, 1.4426950216293335)
        shifts = []
        for i in range(n_rows):
            highest = build.load_scalar(maxima, i)
            unseen = builder.fcmp_ordered("==", highest, ir.Constant(F32, float("-inf")))  # -inf - -inf would be NaN
            finite = builder.select(unseen, ir.Constant(F32, 0.0), highest)
            shifts.append(build.spread(builder.fneg(builder.fmul(finite, log2e))))
        log2e = build.spread(log2e)

        def step(at, totals):
            new = []
            half = builder.lshr(at, _i64(1))
            for row, shift, total in zip(rows, shifts, totals, strict=True):
                here = builder.add(row, at)
                first = build.power(build.fma(build.load(here), log2e, shift))
                second = build.power(build.fma(build.load(builder.add(here, _i64(64))), log2e, shift))
                build.store(build.narrow(first, second), builder.add(row, half))
                new.append(builder.fadd(total, builder.fadd(first, second)))
            return new

        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        for i, total in enumerate(build.loop(n_pairs, 128, step, [zero] * n_rows)):
            build.store_scalar(builder.fadd(build.load_scalar(sums, i), build.sum_of(total)), sums, i)
        return context.get_dummy_value()

    return _addressed(generate, 5)


def _addressed(generate, n_arguments):
    """The intrinsic of n_arguments int64 that `generate` writes."""
    signature = types.void(*[types.int64] * n_arguments)
    if n_arguments == 5:

        @intrinsic
        def five(typingctx, a, b, c, d, e):
            return signature, generate

        return five

    @intrinsic
    def six(typingctx, a, b, c, d, e, f):
        return signature, generate

    return six


def _i64(n):
    return ir.Constant(I64, n)


class _Build:
    """Vector code at a builder's place."""

    def __init__(self, builder):
        self.builder = builder

    def load(self, address):
        return self.builder.load(self.builder.inttoptr(address, _VECTOR.as_pointer()), align=4)

    def store(self, vector, address):
        self.builder.store(vector, self.builder.inttoptr(address, vector.type.as_pointer()), align=4)

    def _at(self, address, i):
        return self.builder.inttoptr(self.builder.add(address, _i64(4 * i)), F32.as_pointer())

    def load_scalar(self, address, i):
        return self.builder.load(self._at(address, i), align=4)

    def store_scalar(self, value, address, i):
        self.builder.store(value, self._at(address, i), align=4)

    def spread(self, scalar):
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_NARROW, [0] * LANES))

    def fma(self, a, b, c):
        function = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return self.builder.call(_declared(self.builder, "llvm.fma.v16f32", function), [a, b, c])

    def _asm(self, text, constraints, *vectors, result=_VECTOR):
        kind = ir.FunctionType(result, [vector.type for vector in vectors])
        return self.builder.call(ir.InlineAsm(kind, text, constraints), list(vectors))

    def max(self, highest, score):
        return self._asm("vmaxps $2, $1, $0", "=v,v,v", highest, score)

    def power(self, exponent):
        """2^exponent for exponents up to 0; 0 for -inf, and NaN for NaN."""
        rest = self._asm("vreduceps $$9, $1, $0", "=v,v", exponent)  # exponent - floor(exponent); 0 for -inf
        value = self.spread(ir.Constant(F32, _POWERS[-1]))
        for coefficient in (*_POWERS[-2::-1], 1.0):
            value = self.fma(value, rest, self.spread(ir.Constant(F32, coefficient)))
        return self._asm("vscalefps $2, $1, $0", "=v,v,v", value, exponent)  # times 2^floor(exponent)

    def narrow(self, first, second):
        return self._asm("vcvtne2ps2bf16 $2, $1, $0", "=v,v,v", second, first, result=_NARROW)

    def _folded(self, vector, combine):
        """One number of a vector's 16."""
        for width in (8, 4, 2, 1):
            mask = [(i + width) % LANES for i in range(LANES)]
            moved = self.builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_NARROW, mask))
            vector = combine(vector, moved)
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    def sum_of(self, vector):
        return self._folded(vector, self.builder.fadd)

    def max_of(self, vector, scalar):
        return self._folded(self.max(vector, self.spread(scalar)), self.max)

    def loop(self, count, step_bytes, step, values):
        """`step(offset, values) -> values`, count >= 1 times, offsets step_bytes apart; the last values."""
        builder = self.builder
        before = builder.block
        body, after = builder.append_basic_block("vectors"), builder.append_basic_block("after")
        builder.branch(body)
        builder.position_at_end(body)
        offset = builder.phi(I64)
        offset.add_incoming(_i64(0), before)
        phis = [builder.phi(value.type) for value in values]
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, before)
        new = step(offset, phis)
        following = builder.add(offset, _i64(step_bytes))
        offset.add_incoming(following, builder.block)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, builder.mul(count, _i64(step_bytes))), body, after)
        builder.position_at_end(after)
        return new


def _declared(builder, name, kind):
    function = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if function is None else function
