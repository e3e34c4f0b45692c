// Nearest entries (VQ encode): scores half_norm_k - x . e_k and their argmin in one kernel; scores never leave registers.
// Grouped codebooks (grid.z = groups), a stage of a residual one, or either after projection onto a subspace.
//
// Roofline: n K W multiply-adds per codebook in float32. 65536 x 768 against K = 1024, G = 1: 51.5 G multiply-adds, 1.54 ms
// at 67 TFLOP/s (H100 SXM, float32 without tensor cores); what is moved (x once per 128-entry tile, from the second-level
// cache) takes less. The same for G = 32 with W = 24.
// Considered: cuBLAS GEMM and a separate argmin (writes and reads n K scores: 268 MB each way in the case above, 0.16 ms
// at 3.35 TB/s, but no kernel of ours to maintain); TF32 tensor cores (scores are wrong from the 11th bit on, so that codes
// leave the tie contract: they would need an exact second look at near ties); one block per row tile only (few tokens
// then keep few multiprocessors busy). Taken: 128 x 128 tiles of 8 x 8 per thread, the next tile on its way to registers
// while this one is worked on, entry tiles split over grid.y, rows merged by a 64-bit atomic minimum. Scores and
// codes are kept apart until then, as a thread meets codes in ascending order; 128 registers, two blocks per multiprocessor.
// Multiply-adds among the instructions of a tile (sm_90, jobs/cuda_code.py): 83% at W = 768, 69% at W = 24; before, with
// 64-bit scores, two numbers unrolled and pointers per row: 78% and 57%.
// Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.
#define TILE 128
#define DEPTH 8
#define LINE (TILE + 4)

typedef unsigned long long Best;

// Sorts as (score, code): the least is the lowest code of the least score.
__device__ __forceinline__ Best ranked(float score, int code) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 is 0
    const unsigned sortable = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<Best>(sortable) << 32 | static_cast<unsigned>(code);
}

// Four numbers from a[at] on of a row that has `left` more, zero beyond them; at < 0: there is no such row.
__device__ __forceinline__ void fetch(float v[4], const float *a, int at, int left) {
#if VECTOR
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float4 four = at >= 0 && left > 0 ? *reinterpret_cast<const float4 *>(a + at) : none;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
#else
    for (int j = 0; j < 4; j++) v[j] = at >= 0 && j < left ? a[at + j] : 0.0f;
#endif
}

// best (n, groups) = min(best, the best entry of this block's tiles). x (n, groups * width), rows x_row apart;
// entries (groups, n_codes, width); half_norms (groups, n_codes). Grid: (row tiles, splits of the entries, groups).
extern "C" __global__ void __launch_bounds__(256, 2)
nearest(const float *x, Index x_row, const float *entries, const float *half_norms, Best *best, int n, int n_codes,
        int width) {
    SHARED_ARRAY(float, xs, 2 * DEPTH * LINE);
    SHARED_ARRAY(float, es, 2 * DEPTH * LINE);
    // a warp reads 4 pieces of rows and 8 of entries: 8 passes of shared memory, where 2 and 16 would take 12
    const int t = threadIdx.x, tx = t / 2 % 8 + t / 32 % 2 * 8, ty = t % 2 + t / 16 % 2 * 2 + t / 64 * 4;
    const int group = blockIdx.z, n_groups = gridDim.z;
    const int row0 = blockIdx.x * TILE, own = t / 2, part = t % 2 * 4;  // what this thread brings: row `own`, 4 deep
    x += static_cast<Index>(group) * width + row0 * x_row;
    entries += static_cast<Index>(group) * n_codes * width;
    half_norms += static_cast<Index>(group) * n_codes;
    const int steps = (width + DEPTH - 1) / DEPTH;
    float lowest[8];
    int codes[8];
    for (int i = 0; i < 8; i++) lowest[i] = CUDART_INF_F, codes[i] = -1;
    const int x_own = row0 + own < n ? own * static_cast<int>(x_row) + part : -1;
    for (int tile = blockIdx.y * TILE; tile < n_codes; tile += gridDim.y * TILE) {
        const int e_own = tile + own < n_codes ? (tile + own) * width + part : -1;
        float acc[8][8] = {}, nx[4], ne[4];
        fetch(nx, x, x_own, width - part);
        fetch(ne, entries, e_own, width - part);
        for (int step = 0; step < steps; step++) {
            const int at = step % 2 * DEPTH * LINE;
            for (int j = 0; j < 4; j++) {
                xs[at + (part + j) * LINE + own] = nx[j];
                es[at + (part + j) * LINE + own] = ne[j];
            }
            __syncthreads();  // the other half of the buffers is free: all threads are past their reads of it
            if (step + 1 < steps) {
                const int next = (step + 1) * DEPTH, left = width - next - part;
                fetch(nx, x + next, x_own, left);
                fetch(ne, entries + next, e_own, left);
            }
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                const int line = at + k * LINE;
                const float4 x0 = read4(xs, line + ty * 4), x1 = read4(xs, line + 64 + ty * 4);
                const float4 e0 = read4(es, line + tx * 4), e1 = read4(es, line + 64 + tx * 4);
                const float a[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
                const float e[8] = {e0.x, e0.y, e0.z, e0.w, e1.x, e1.y, e1.z, e1.w};
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) acc[i][j] = fmaf(a[i], e[j], acc[i][j]);
            }
        }
        __syncthreads();  // the next tile writes the buffers again
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int code = tile + j / 4 * 64 + tx * 4 + j % 4;
            const float norm = code < n_codes ? half_norms[code] : CUDART_INF_F;
#pragma unroll
            for (int i = 0; i < 8; i++) {  // a thread's codes ascend: of equals the first stays
                const float score = norm - acc[i][j];
                if (score < lowest[i]) lowest[i] = score, codes[i] = code;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        Best found = codes[i] < 0 ? ~0ull : ranked(lowest[i], codes[i]);
        for (int o = 8; o > 1; o >>= 1) {  // the lanes of this row in this warp; another has the others
            const Best rival = __shfl_xor_sync(0xffffffffu, found, o);
            found = rival < found ? rival : found;
        }
        const int row = row0 + i / 4 * 64 + ty * 4 + i % 4;
        if (tx % 8 == 0 && row < n) atomicMin(best + static_cast<Index>(row) * n_groups + group, found);
    }
}

// codes[i * n_columns + column ..] of best (n, groups), a warp per row; code 0 where no score was finite.
// With a residual (n, width): residual -= entry, and best is made ready for the next stage.
extern "C" __global__ void __launch_bounds__(128)
settle(Best *best, CODE *codes, int n_columns, int column, float *residual, const float *entries, int n, int n_groups,
       int n_codes, int width) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= n) return;  // the whole warp
    unsigned code = 0;
    for (int g = lane; g < n_groups; g += 32) {
        code = static_cast<unsigned>(best[static_cast<Index>(row) * n_groups + g]);
        if (code >= static_cast<unsigned>(n_codes)) code = 0;
        codes[static_cast<Index>(row) * n_columns + column + g] = static_cast<CODE>(code);
        best[static_cast<Index>(row) * n_groups + g] = ~0ull;
    }
    if (residual == nullptr) return;
    code = __shfl_sync(0xffffffffu, code, 0);
    for (int i = lane; i < width; i += 32)
        residual[static_cast<Index>(row) * width + i] -= entries[static_cast<Index>(code) * width + i];
}
