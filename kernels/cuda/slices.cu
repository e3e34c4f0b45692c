// table_sum (codes.cu) for many tokens: a block keeps a slice of the columns of all tables in shared memory.
// Parameters: SLICE = columns of a slice, which divide width; TABLES = C; VECTOR = 1.
//
// Roofline: writes n E numbers and reads n C E from tables (C = 4, K = 256, E = 1536: 6.3 MB); 12288 x 1536 float32 out: 75 MB,
// 23 us at 3.35 TB/s. From the second-level cache (some 6 TB/s) the 302 MB that are read take 50 us; from shared memory
// (28 TB/s) 11, if no two rows that are read at a time lie in the same banks.
// Considered: a one-hot GEMM (K times the work); a block per token, from the cache (codes.cu: for few tokens, or tables whose
// slices do not fit). Taken: rows of one code k lie side by side, and neighbouring tokens begin with another table, so that
// they read other banks where C is a multiple of four; the next token's codes come while this one is added up.
// Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.
#define THREADS 512
#define PIECES (SLICE / STEP)
#define AT_ONCE (THREADS / PIECES)  // tokens

// out (n, width) = scale[i] * sum_c tables[c, codes[i, c]] + bias; tables (C, K, width). Grid: (slices, parts of n).
extern "C" __global__ void __launch_bounds__(THREADS)
table_sum_sliced(const CODE *codes, const real *tables, const float *scale, const float *bias, real *out, int n, int n_codes,
                 int width) {
    SHARED_DYNAMIC(memory);
    Shared<real> slice = shared_at<real>(memory, 0);  // (K, C, SLICE)
    const int at = threadIdx.x % PIECES * STEP, column = blockIdx.x * SLICE + at, turn = threadIdx.x / PIECES % 4;
    for (int row = threadIdx.x / PIECES; row < TABLES * n_codes; row += AT_ONCE) {
        float v[STEP];
        load_step(tables + (static_cast<Index>(row % TABLES) * n_codes + row / TABLES) * width + column, v);
        store_step(shared_place(slice, row * SLICE + at, STEP), v);
    }
    float shift[STEP];
    for (int j = 0; j < STEP; j++) shift[j] = bias ? bias[column + j] : 0.0f;
    int i = blockIdx.y * AT_ONCE + threadIdx.x / PIECES, next[TABLES];
    float factor = 1.0f;
    if (i < n) {
        for (int c = 0; c < TABLES; c++) next[c] = codes[static_cast<Index>(i) * TABLES + c];
        if (scale) factor = scale[i];
    }
    __syncthreads();
    for (; i < n; i += gridDim.y * AT_ONCE) {
        int rows[TABLES];
        const float scaled = factor;
#pragma unroll
        for (int c = 0; c < TABLES; c++) rows[c] = (next[c] * TABLES + c) * SLICE + at;
        const int later = i + gridDim.y * AT_ONCE;
        if (later < n) {
#pragma unroll
            for (int c = 0; c < TABLES; c++) next[c] = codes[static_cast<Index>(later) * TABLES + c];
            if (scale) factor = scale[later];
        }
        float total[STEP] = {};
#pragma unroll
        for (int c = 0; c + 4 <= TABLES; c += 4) {
            float v[4][STEP];
#pragma unroll
            for (int u = 0; u < 4; u++) {  // table c + (u + turn) % 4
                const int low = turn & 1 ? rows[c + (u + 1) % 4] : rows[c + u];
                const int high = turn & 1 ? rows[c + (u + 3) % 4] : rows[c + (u + 2) % 4];
                load_step(shared_span(slice, turn & 2 ? high : low, STEP), v[u]);
            }
            for (int j = 0; j < STEP; j++) total[j] += (v[0][j] + v[2][j]) + (v[1][j] + v[3][j]);  // whatever `turn`
        }
#pragma unroll
        for (int c = TABLES / 4 * 4; c < TABLES; c++) {
            float v[STEP];
            load_step(shared_span(slice, rows[c], STEP), v);
            for (int j = 0; j < STEP; j++) total[j] += v[j];
        }
        for (int j = 0; j < STEP; j++) total[j] = fmaf(total[j], scaled, shift[j]);
        store_step(out + static_cast<Index>(i) * width + column, total);
    }
}
