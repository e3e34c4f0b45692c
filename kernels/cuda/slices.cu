// table_sum (codes.cu) for many tokens: a block keeps a slice of the columns of all tables in shared memory.
// Parameter: SLICE = columns of a slice, which divide width; VECTOR = 1.
//
// Roofline: writes n E numbers and reads n C E from tables (M = 4, K = 256, E = 1536: 6.3 MB); 12288 x 1536 float32 out: 75 MB,
// 23 us at 3.35 TB/s. From the second-level cache (some 6 TB/s) the 302 MB that are read take 50 us; from shared memory
// (28 TB/s) 11.
// Considered: a one-hot GEMM (K times the work); a block per token, from the cache (codes.cu: for few tokens, or tables whose
// slices do not fit). Times: docs/gpu.md, by jobs/gpu_bench.py.

// out (n, width) = scale[i] * sum_c tables[c, codes[i, c]] + bias; tables (C, K, width). Grid: (slices, parts of n).
#define PIECES (SLICE / STEP)
extern "C" __global__ void __launch_bounds__(256)
table_sum_sliced(const CODE *codes, const real *tables, const float *scale, const float *bias, real *out, int n,
                 int n_tables, int n_codes, int width) {
    SHARED_DYNAMIC(memory);
    Shared<real> slice = shared_at<real>(memory, 0);
    const int column = blockIdx.x * SLICE + threadIdx.x % PIECES * STEP, at = threadIdx.x % PIECES * STEP;
    float v[STEP];
    for (int row = threadIdx.x / PIECES; row < n_tables * n_codes; row += 256 / PIECES) {
        load_step(tables + static_cast<Index>(row) * width + column, v);
        store_step(shared_place(slice, row * SLICE + at, STEP), v);
    }
    __syncthreads();
    float shift[STEP];
    for (int j = 0; j < STEP; j++) shift[j] = bias ? bias[column + j] : 0.0f;
    for (int i = blockIdx.y * (256 / PIECES) + threadIdx.x / PIECES; i < n; i += gridDim.y * (256 / PIECES)) {
        const CODE *own = codes + static_cast<Index>(i) * n_tables;
        float total[STEP];
        for (int j = 0; j < STEP; j++) total[j] = 0.0f;
        for (int c = 0; c < n_tables; c++) {
            load_step(shared_span(slice, (c * n_codes + own[c]) * SLICE + at, STEP), v);
            for (int j = 0; j < STEP; j++) total[j] += v[j];
        }
        const float factor = scale ? scale[i] : 1.0f;
        for (int j = 0; j < STEP; j++) total[j] = fmaf(total[j], factor, shift[j]);
        store_step(out + static_cast<Index>(i) * width + column, total);
    }
}
