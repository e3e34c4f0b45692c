// Products that are the same number for number on every processor (kernels/integers.py): rows and weights as integers of 16
// bits, group by group, exact sums of their products, and one order of what is done with these in float32.
//
// Roofline: 2 n k m multiply-adds of integers; 12288 x 768 by 768 x 768: 14.5 G, 0.9 ms at 17 T/s (H100 SXM, 64 per clock and SM).
// Considered: cuBLAS, whose kernels and splits of k change with n. Taken: 64 x 64 tiles of 4 x 4 per thread.
#define TILE 64
#define DEPTH 16
#define LINE (TILE + 4)
#define GROUP 256
#define MOST 32512.0f
#define LEAST 7.888609052210118e-31f  // 2^-100

// q (n, k) int16 and steps (n, groups) of x (n, k). Grid: (n, groups), a thread per input.
extern "C" __global__ void __launch_bounds__(GROUP)
quantise(const float *x, short *q, float *steps, int k) {
    SHARED_ARRAY(unsigned, largest, GROUP);
    const int t = threadIdx.x, input = blockIdx.y * GROUP + t;
    const Index at = static_cast<Index>(blockIdx.x) * k + input;
    const float value = input < k ? x[at] : 0.0f;
    largest[t] = __float_as_uint(value) & 0x7fffffffu;  // magnitudes sort as their bits do, NaN last
    __syncthreads();
    for (int half = GROUP / 2; half > 0; half /= 2) {
        if (t < half) largest[t] = max(static_cast<unsigned>(largest[t]), static_cast<unsigned>(largest[t + half]));
        __syncthreads();
    }
    const unsigned bits = largest[0];
    const float size = __uint_as_float(bits);
    const bool finite = bits < 0x7f800000u;
    if (input < k) q[at] = finite && size >= LEAST ? __float2int_rn(__fmul_rn(value, __fdiv_rn(MOST, size))) : 0;
    if (t == 0) steps[static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y] = finite ? __fdiv_rn(size, MOST) : __uint_as_float(0x7fc00000u);
}

// out (n, m) = (state ? keep * state (n, m) + bias (m,) : 0) + q (n, k) @ high (k, m) + its high digit @ low (k, m), with
// steps (n, groups) and scale (groups, m). Grid: (row tiles, column tiles).
extern "C" __global__ void __launch_bounds__(256)
integer_product(const short *q, const float *steps, const signed char *high, const signed char *low, const float *scale,
                const float *state, float keep, const float *bias, float *out, int n, int k, int m) {
    SHARED_ARRAY(int, xs, DEPTH * LINE);
    SHARED_ARRAY(int, above, DEPTH * LINE);
    SHARED_ARRAY(int, below, DEPTH * LINE);
    const int t = threadIdx.x, tx = t % 16, ty = t / 16, row0 = blockIdx.x * TILE, column0 = blockIdx.y * TILE;
    const int n_groups = (k + GROUP - 1) / GROUP;
    float total[4][4] = {};
    if (state != nullptr)
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                const int row = row0 + ty * 4 + i, column = column0 + tx * 4 + j;
                if (row < n && column < m) total[i][j] = __fadd_rn(__fmul_rn(state[static_cast<Index>(row) * m + column], keep), bias[column]);
            }
    for (int g = 0; g < n_groups; g++) {
        const int last = min(k, (g + 1) * GROUP);
        int exact[4][4] = {};
        for (int begin = g * GROUP; begin < last; begin += DEPTH) {
            for (int i = t; i < DEPTH * TILE; i += 256) {
                const int row = row0 + i / DEPTH, input = begin + i % DEPTH;
                xs[i % DEPTH * LINE + i / DEPTH] = row < n && input < last ? q[static_cast<Index>(row) * k + input] : 0;
            }
            for (int i = t; i < DEPTH * TILE; i += 256) {
                const int input = begin + i / TILE, column = column0 + i % TILE;
                const Index at = static_cast<Index>(input) * m + column;
                above[i / TILE * LINE + i % TILE] = input < last && column < m ? high[at] : 0;
                below[i / TILE * LINE + i % TILE] = input < last && column < m ? low[at] : 0;
            }
            __syncthreads();
            for (int d = 0; d < DEPTH; d++) {
                const int at = d * LINE + tx * 4, *a = shared_span(xs, d * LINE + ty * 4, 4);
                const int *b = shared_span(above, at, 4), *c = shared_span(below, at, 4);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) exact[i][j] += a[i] * b[j] + ((a[i] + 128) >> 8) * c[j];
            }
            __syncthreads();
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                const int row = row0 + ty * 4 + i, column = column0 + tx * 4 + j;
                if (row < n && column < m) {
                    const float scaled = __fmul_rn(__int2float_rn(exact[i][j]), steps[static_cast<Index>(row) * n_groups + g]);
                    total[i][j] = __fadd_rn(total[i][j], __fmul_rn(scaled, scale[static_cast<Index>(g) * m + column]));
                }
            }
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int row = row0 + ty * 4 + i, column = column0 + tx * 4 + j;
            if (row < n && column < m) out[static_cast<Index>(row) * m + column] = total[i][j];
        }
}
