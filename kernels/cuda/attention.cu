// Mixed-precision attention (arXiv 2505.19342, Eq. 1) in float32: one step of online softmax over keys that are local and in
// full precision, or far and read through `key_rows` from a projected codebook, for all sequences and heads in one launch.
// Shapes and arguments: attention.cuh. Half: attention_half.cu.
//
// Roofline: 2 H n m D multiply-adds. 16 heads, 4096 x 16384, D = 64: 137 G, 2.05 ms at 67 TFLOP/s float32; K and V are read
// once per 64 queries, from the second-level cache.
// Considered: cuBLAS products and a softmax pass between (writes H n m scores: 4.3 GB above); keys gathered to memory
// first (2 m D more traffic: with one code per token the table itself is read, whose rows the cache holds); TF32 on tensor
// cores (10 bits of a score of 100 are 0.1). Taken: 64 x 64 tiles, 4 x 4 scores per thread.
// Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.
#define CHUNK ((DP + STEP - 1) / STEP)

#define LINE (DP + 4)
#define SLINE (TILE + 4)

// Rows of a (rows, D) array to a tile (TILE, LINE), float32, zero outside; `rows`: which ones they are, or null.
__device__ __forceinline__ void fetch(Shared<float> tile, const real *a, Index stride, const int *rows, int n) {
    for (int i = threadIdx.x; i < TILE * CHUNK; i += 256) {
        const int row = i / CHUNK, column = i % CHUNK * STEP;
        float value[STEP];
        for (int j = 0; j < STEP; j++) value[j] = 0.0f;
        if (row < n && column < D) load_step(a + (rows ? rows[row] : row) * stride + column, value);
        for (int j = 0; j < STEP; j++) tile[row * LINE + column + j] = value[j];
    }
}

// Thread (ty, tx) of 16 x 16 has queries ty + 16 i, keys tx + 16 j, columns tx + 16 c. Grid: (query tiles, H, B).
extern "C" __global__ void __launch_bounds__(256) attend(ARGUMENTS) {
    SHARED_DYNAMIC(memory);
    Shared<float> qs = shared_at<float>(memory, 0), ks = shared_at<float>(memory, 4 * TILE * LINE);
    Shared<float> ps = shared_at<float>(memory, 8 * TILE * LINE), bs = shared_at<float>(memory, 8 * TILE * LINE + 4 * TILE * SLINE);
    const Work work(TILE, q_offsets, k_offsets, k_ends, is_causal, causal);
    if (work.n_seen <= 0) return;  // the whole block
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, head = blockIdx.y, kv_head = head / repeat;
    const int n_here = min(TILE, work.n_queries - work.first);
    fetch(qs, q + head * q_head + (work.q0 + work.first) * q_row, q_row, nullptr, n_here);
    acc += head * acc_head + (work.q0 + work.first) * acc_row;
    row_max += head * state_head + (work.q0 + work.first) * state_row;
    row_sum += head * state_head + (work.q0 + work.first) * state_row;
    k += kv_head * k_head, v += kv_head * v_head;
    float highest[4], total[4], out[4][DP / 16];
    for (int i = 0; i < 4; i++) {
        const int row = ty + 16 * i;
        highest[i] = row < n_here ? row_max[row * state_row] : -CUDART_INF_F;
        total[i] = row < n_here ? row_sum[row * state_row] : 0.0f;
        for (int c = 0; c < DP / 16; c++)
            out[i][c] = row < n_here && tx + 16 * c < D ? acc[row * acc_row + tx + 16 * c] : 0.0f;
    }
    for (int tile = 0; tile < work.n_seen; tile += TILE) {
        const int n_keys = min(TILE, work.n_seen - tile);
        const Index at = work.k0 + tile;
        const int *rows = key_rows ? key_rows + at : nullptr;
        fetch(ks, rows ? k : k + at * k_row, k_row, rows, n_keys);
        for (int j = threadIdx.x; j < TILE; j += 256)
            bs[j] = j < n_keys ? (key_bias ? key_bias[at + j] : 0.0f) : -CUDART_INF_F;
        __syncthreads();
        float s[4][4] = {};
#pragma unroll 4
        for (int d = 0; d < DP; d += 4) {
            float4 a[4], b[4];
            for (int i = 0; i < 4; i++) a[i] = read4(qs, (ty + 16 * i) * LINE + d), b[i] = read4(ks, (tx + 16 * i) * LINE + d);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    s[i][j] = fmaf(a[i].x, b[j].x, s[i][j]), s[i][j] = fmaf(a[i].y, b[j].y, s[i][j]);
                    s[i][j] = fmaf(a[i].z, b[j].z, s[i][j]), s[i][j] = fmaf(a[i].w, b[j].w, s[i][j]);
                }
        }
        for (int i = 0; i < 4; i++) {
            const int query = work.first + ty + 16 * i;
            float best = highest[i];
            for (int j = 0; j < 4; j++) {
                const int key = tx + 16 * j;
#if NEAR
                if (ty + 16 * i < n_here && key < n_keys) s[i][j] = ADJUSTED(s[i][j], work.q0 + query, at + key);
#endif
                s[i][j] += bs[key];
                if (is_causal && tile + key > query + causal) s[i][j] = -CUDART_INF_F;
                best = fmaxf(best, s[i][j]);
            }
            for (int o = 8; o; o >>= 1) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, o));
            const float decay = weight(highest[i], best);
            float sum = 0.0f;
            for (int j = 0; j < 4; j++) {
                const float p = weight(s[i][j], best);
                ps[(ty + 16 * i) * SLINE + tx + 16 * j] = p;
                sum += p;
            }
            for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
            if (best > -CUDART_INF_F) {
                total[i] = total[i] * decay + sum;
                for (int c = 0; c < DP / 16; c++) out[i][c] *= decay;
                highest[i] = best;
            }
        }
        __syncthreads();  // the keys have been read: their place is the values'
        fetch(ks, rows ? v : v + at * v_row, v_row, rows, n_keys);
        __syncthreads();
#pragma unroll 2
        for (int j = 0; j < TILE; j += 4) {
            float p[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 four = read4(ps, (ty + 16 * i) * SLINE + j);
                p[i][0] = four.x, p[i][1] = four.y, p[i][2] = four.z, p[i][3] = four.w;
            }
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int c = 0; c < DP / 16; c++) {
                    const float value = ks[(j + u) * LINE + tx + 16 * c];
#pragma unroll
                    for (int i = 0; i < 4; i++) out[i][c] = fmaf(p[i][u], value, out[i][c]);
                }
        }
        __syncthreads();  // the next tile is written to the same places
    }
    for (int i = 0; i < 4; i++) {
        const int row = ty + 16 * i;
        if (row >= n_here) continue;
        for (int c = 0; c < DP / 16; c++)
            if (tx + 16 * c < D) acc[row * acc_row + tx + 16 * c] = out[i][c];
        if (tx == 0) row_max[row * state_row] = highest[i], row_sum[row * state_row] = total[i];
    }
}
