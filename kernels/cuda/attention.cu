// Mixed-precision attention (arXiv 2505.19342, Eq. 1): one step of online softmax over keys that are local and in full
// precision, or far and read through `key_rows` from a projected codebook, for all sequences and heads in one launch.
// Parameters: D = head width (1 .. 256). acc, row_max, row_sum carry the softmax from step to step in float32, so that
// any split of the keys gives the same: the log-sum-exp merge.
//
// Shapes: queries (n, H D), keys and values (m, Hkv D), by head and row strides; H / Hkv query heads read one key head.
// Sequence s has the queries q_offsets[s] .. q_offsets[s + 1] - 1 and the keys k_offsets[s] .. k_ends[s] - 1 (null: up to
// k_offsets[s + 1]). Query i sees key j when j <= i + causal. key_bias (m,) is added to the scores: -inf hides a key,
// log(count) counts it. A block with nothing to see leaves the state alone.
//
// Roofline: 2 H n m D multiply-adds. 16 heads, 4096 x 16384, D = 64: 137 G, 2.05 ms at 67 TFLOP/s float32, 0.28 ms at 989
// TFLOP/s half on tensor cores; K and V are read once per 64 queries, from the second-level cache.
// Considered: cuBLAS products and a softmax pass between (writes H n m scores: 4.3 GB above); keys gathered to memory
// first (2 m D more traffic: with one code per token the table itself is read, whose rows the cache holds); cp.async
// double buffering and wgmma (sm_90 only), to be tried where a GPU can tell. Taken: 64 x 64 tiles, 4 x 4 scores
// per thread, for float32 (and half without tensor cores); with MMA = 1, PTX's mma.m16n8k16 with scores kept in registers
// as the next product's operand, for half.
// Times: docs/gpu.md, by jobs/gpu_bench.py.
#define TILE 64
#define DP ((D + 15) / 16 * 16)
#define CHUNK ((DP + STEP - 1) / STEP)

// Which part of the keys and queries a block works on.
struct Work {
    Index q0, k0;
    int n_queries, first, n_seen;  // of the tile: first query, keys that its last query sees

    __device__ Work(const Index *q_offsets, const Index *k_offsets, const Index *k_ends, int is_causal, int causal) {
        const int s = blockIdx.z;
        q0 = q_offsets[s], k0 = k_offsets[s];
        n_queries = static_cast<int>(q_offsets[s + 1] - q0);
        first = blockIdx.x * TILE;
        n_seen = static_cast<int>((k_ends ? k_ends[s] : k_offsets[s + 1]) - k0);
        if (is_causal) n_seen = min(n_seen, min(n_queries, first + TILE) + causal);
        if (first >= n_queries) n_seen = 0;
    }
};

#define ARGUMENTS                                                                                                        \
    const real *q, Index q_head, Index q_row, const real *k, Index k_head, Index k_row, const real *v, Index v_head,     \
        Index v_row, const float *key_bias, const int *key_rows, const Index *q_offsets, const Index *k_offsets,         \
        const Index *k_ends, int repeat, int is_causal, int causal, float *acc, Index acc_head, Index acc_row,           \
        float *row_max, float *row_sum, Index state_head, Index state_row

#if !MMA
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
    const Work work(q_offsets, k_offsets, k_ends, is_causal, causal);
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
#pragma unroll 4
        for (int j = 0; j < TILE; j++) {
            float value[DP / 16];
            for (int c = 0; c < DP / 16; c++) value[c] = ks[j * LINE + tx + 16 * c];
            for (int i = 0; i < 4; i++) {
                const float p = ps[(ty + 16 * i) * SLINE + j];
                for (int c = 0; c < DP / 16; c++) out[i][c] = fmaf(p, value[c], out[i][c]);
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
#else
#define LINE (DP + 8)  // 16-byte rows that start in different banks

// As above, in half.
__device__ __forceinline__ void fetch(Shared<real> tile, const real *a, Index stride, const int *rows, int n) {
    for (int i = threadIdx.x; i < TILE * CHUNK; i += 128) {
        const int row = i / CHUNK, column = i % CHUNK * STEP;
        const bool there = row < n && column < D;
        const real *p = a + (there ? (rows ? rows[row] : row) * stride + column : 0);
        for (int j = 0; j < STEP; j++) tile[row * LINE + column + j] = there ? p[j] : to_real(0.0f);
    }
}

// Four warps of 16 queries each. In a warp, lane 4 g + t has rows g and g + 8 of every product, columns 2 t and 2 t + 1
// of every 8. Grid: (query tiles, H, B).
extern "C" __global__ void __launch_bounds__(128) attend(ARGUMENTS) {
    SHARED_DYNAMIC(memory);
    Shared<real> ks = shared_at<real>(memory, 0), vs = shared_at<real>(memory, 2 * TILE * LINE);
    Shared<float> bs = shared_at<float>(memory, 4 * TILE * LINE);
    const Work work(q_offsets, k_offsets, k_ends, is_causal, causal);
    if (work.n_seen <= 0) return;  // the whole block
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = blockIdx.y, kv_head = head / repeat;
    const int row0 = threadIdx.x / 32 * 16 + g, n_here = min(TILE, work.n_queries - work.first);
    acc += head * acc_head + (work.q0 + work.first) * acc_row;
    row_max += head * state_head + (work.q0 + work.first) * state_row;
    row_sum += head * state_head + (work.q0 + work.first) * state_row;
    k += kv_head * k_head, v += kv_head * v_head;
    fetch(ks, q + head * q_head + (work.q0 + work.first) * q_row, q_row, nullptr, n_here);
    __syncthreads();
    unsigned queries[DP / 16][4];
#pragma unroll
    for (int d = 0; d < DP / 16; d++)
        for (int r = 0; r < 4; r++)
            queries[d][r] = read_pair(ks, (row0 + r % 2 * 8) * LINE + d * 16 + r / 2 * 8 + t * 2);
    __syncthreads();
    float highest[2], total[2], out[DP / 8][4];
    for (int h = 0; h < 2; h++) {
        const int row = row0 + 8 * h;
        highest[h] = row < n_here ? row_max[row * state_row] : -CUDART_INF_F;
        total[h] = row < n_here && t == 0 ? row_sum[row * state_row] : 0.0f;  // lanes of a row have parts of its sum
        for (int c = 0; c < DP / 8; c++)
            for (int j = 0; j < 2; j++) {
                const int column = c * 8 + t * 2 + j;
                out[c][2 * h + j] = row < n_here && column < D ? acc[row * acc_row + column] : 0.0f;
            }
    }
    for (int tile = 0; tile < work.n_seen; tile += TILE) {
        const int n_keys = min(TILE, work.n_seen - tile);
        const Index at = work.k0 + tile;
        const int *rows = key_rows ? key_rows + at : nullptr;
        fetch(ks, rows ? k : k + at * k_row, k_row, rows, n_keys);
        fetch(vs, rows ? v : v + at * v_row, v_row, rows, n_keys);
        for (int j = threadIdx.x; j < TILE; j += 128)
            bs[j] = j < n_keys ? (key_bias ? key_bias[at + j] : 0.0f) : -CUDART_INF_F;
        __syncthreads();
        float s[TILE / 8][4];
        float best[2] = {highest[0], highest[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            for (int j = 0; j < 4; j++) s[n][j] = 0.0f;
#pragma unroll
            for (int d = 0; d < DP / 16; d++) {
                const int place = (n * 8 + g) * LINE + d * 16 + t * 2;
                mma(s[n], queries[d], read_pair(ks, place), read_pair(ks, place + 8));
            }
            for (int j = 0; j < 4; j++) {
                const int key = n * 8 + t * 2 + j % 2, query = work.first + row0 + j / 2 * 8;
                s[n][j] += bs[key];
                if (is_causal && tile + key > query + causal) s[n][j] = -CUDART_INF_F;
                best[j / 2] = fmaxf(best[j / 2], s[n][j]);
            }
        }
        for (int h = 0; h < 2; h++) {
            for (int o = 2; o; o >>= 1) best[h] = fmaxf(best[h], __shfl_xor_sync(0xffffffffu, best[h], o));
            const float decay = best[h] > -CUDART_INF_F ? weight(highest[h], best[h]) : 1.0f;
            total[h] *= decay;
            highest[h] = best[h];
#pragma unroll
            for (int c = 0; c < DP / 8; c++) out[c][2 * h] *= decay, out[c][2 * h + 1] *= decay;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
            for (int j = 0; j < 4; j++) s[n][j] = weight(s[n][j], highest[j / 2]), total[j / 2] += s[n][j];
#pragma unroll
        for (int m = 0; m < TILE / 16; m++) {  // 16 keys: two products of scores are the left factor of the next
            const unsigned weights[4] = {pack_pair(s[2 * m][0], s[2 * m][1]), pack_pair(s[2 * m][2], s[2 * m][3]),
                                         pack_pair(s[2 * m + 1][0], s[2 * m + 1][1]),
                                         pack_pair(s[2 * m + 1][2], s[2 * m + 1][3])};
#pragma unroll
            for (int c = 0; c < DP / 8; c += 2) {
                unsigned values[4];
                read_matrices_transposed(values, vs + ((m * 16 + lane % 16) * LINE + c * 8 + lane / 16 * 8));
                mma(out[c], weights, values[0], values[1]);
                mma(out[c + 1], weights, values[2], values[3]);
            }
        }
        __syncthreads();  // the next tile is written to the same places
    }
    for (int h = 0; h < 2; h++) {
        for (int o = 2; o; o >>= 1) total[h] += __shfl_xor_sync(0xffffffffu, total[h], o);
        const int row = row0 + 8 * h;
        if (row >= n_here) continue;
        for (int c = 0; c < DP / 8; c++)
            for (int j = 0; j < 2; j++) {
                const int column = c * 8 + t * 2 + j;
                if (column < D) acc[row * acc_row + column] = out[c][2 * h + j];
            }
        if (t == 0) row_max[row * state_row] = highest[h], row_sum[row * state_row] = total[h];
    }
}
#endif
