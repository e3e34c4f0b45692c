// Mixed-precision attention (arXiv 2505.19342, Eq. 1) in half, sums in float32, on tensor cores (sm_80 and later): one step of
// online softmax, as attention.cu. Shapes and arguments: attention.cuh.
// Parameters: ROWS = 16-row products of a warp (1 or 2; a block has 64 ROWS queries), WIDE = 1: rows of queries, keys and
// values may be read 16 bytes at a time.
//
// Roofline: 2 H n m D multiply-adds. 16 heads, 4096 x 16384, D = 64: 137 G, 0.28 ms at 989 TFLOP/s, of which mma is said to reach
// two thirds on sm_90; K and V are read once per 64 ROWS queries, from the second-level cache.
// Considered: wgmma and TMA (sm_90 only), to be tried where a GPU can tell; two buffers for keys and two for values (twice
// the shared memory for nothing: keys of the next tile come while values of this one are used, and the other way round).
// Taken: PTX's mma.m16n8k16, scores kept in registers as the next product's left factor; cp.async; ldmatrix; 2^x for e^x.
// Not timed; by jobs/cuda_code.py for sm_90, D = 64, ROWS = 2: 128 products and 68 exponentials among some 760 instructions per tile
// and warp, no spills, tiles come 16 bytes at a time (before: two, by way of registers).
// Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.
#define LINE (DP + 8)  // 16-byte rows that start in different banks
#define QUERIES (64 * ROWS)
#define UNROLLED (DP > 128 ? 1 : 16)  // for wide heads there are no registers left

__device__ __forceinline__ void bring(Shared<real> to, const real *from, int column, bool there) {
#if WIDE
    copy16(to, from, there);
#else
    for (int j = 0; j < 8; j++) to[j] = there && column + j < D ? from[j] : to_real(0.0f);
#endif
}

// n rows (one at least) of a (rows, D) array to a tile (n_rows, LINE), zero outside; `rows`: which ones they are, or null.
// Here when copies_here() has been called and all threads have met. n_rows DP / 8 is a multiple of 128.
__device__ __forceinline__ void fetch(Shared<real> tile, int n_rows, const real *a, Index stride, const int *rows, int n) {
    const int step = static_cast<int>(stride);
    if (rows) {
#pragma unroll UNROLLED
        for (int turn = 0; turn < n_rows * (DP / 8) / 128; turn++) {
            const int i = threadIdx.x + 128 * turn, row = i / (DP / 8), column = i % (DP / 8) * 8;
            const bool there = row < n && column < D;
            const real *from = a + (there ? static_cast<Index>(rows[row]) * step + column : 0);
            bring(tile + (row * LINE + column), from, column, there);
        }
    } else {
#pragma unroll UNROLLED
        for (int turn = 0; turn < n_rows * (DP / 8) / 128; turn++) {
            const int i = threadIdx.x + 128 * turn, row = i / (DP / 8), column = i % (DP / 8) * 8;
            const real *from = a + (static_cast<Index>(min(row, n - 1)) * step + (column < D ? column : 0));
            bring(tile + (row * LINE + column), from, column, row < n && column < D);
        }
    }
}

// Four warps of 16 ROWS queries each. In a warp, lane 4 g + t has rows g and g + 8 of every product, columns 2 t and 2 t + 1
// of every 8.
extern "C" __global__ void __launch_bounds__(128) attend(ARGUMENTS) {
    SHARED_DYNAMIC(memory);
    Shared<real> ks = shared_at<real>(memory, 0), vs = shared_at<real>(memory, 2 * TILE * LINE);
    Shared<float> bs = shared_at<float>(memory, 4 * TILE * LINE);
    const Work work(QUERIES, q_offsets, k_offsets, k_ends, is_causal, causal);
    if (work.n_seen <= 0) return;  // the whole block
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = blockIdx.y, kv_head = head / repeat;
    const int warp_row = threadIdx.x / 32 * 16 * ROWS, n_here = min(QUERIES, work.n_queries - work.first);
    acc += head * acc_head + (work.q0 + work.first) * acc_row;
    row_max += head * state_head + (work.q0 + work.first) * state_row;
    row_sum += head * state_head + (work.q0 + work.first) * state_row;
    k += kv_head * k_head, v += kv_head * v_head;
    fetch(ks, QUERIES, q + head * q_head + (work.q0 + work.first) * q_row, q_row, nullptr, n_here);  // vs too if ROWS = 2
    copies_here();
    __syncthreads();
    unsigned queries[ROWS][DP / 16][4];
    float highest[ROWS][2], total[ROWS][2], out[ROWS][DP / 8][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int d = 0; d < DP / 16; d++)
            read_matrices(queries[r][d], ks + ((warp_row + r * 16 + lane % 16) * LINE + d * 16 + lane / 16 * 8));
        for (int h = 0; h < 2; h++) {
            const int row = warp_row + r * 16 + g + 8 * h;
            highest[r][h] = row < n_here ? row_max[row * state_row] : -CUDART_INF_F;
            total[r][h] = row < n_here && t == 0 ? row_sum[row * state_row] : 0.0f;  // lanes of a row have parts of its sum
#pragma unroll
            for (int c = 0; c < DP / 8; c++)
                for (int j = 0; j < 2; j++) {
                    const int column = c * 8 + t * 2 + j;
                    out[r][c][2 * h + j] = row < n_here && column < D ? acc[row * acc_row + column] : 0.0f;
                }
        }
    }
    __syncthreads();
    for (int tile = -TILE; tile < work.n_seen; tile += TILE) {  // the first turn only sends for keys
        float s[ROWS][TILE / 8][4];
        if (tile >= 0) {
            copies_here();
            __syncthreads();  // the keys are here, and all are past the values of the last tile
            const int n_keys = min(TILE, work.n_seen - tile);
            const Index at = work.k0 + tile;
            fetch(vs, TILE, key_rows ? v : v + at * v_row, v_row, key_rows ? key_rows + at : nullptr, n_keys);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
                    for (int j = 0; j < 4; j++) s[r][n][j] = 0.0f;
#pragma unroll
            for (int d = 0; d < DP / 16; d++)
#pragma unroll
                for (int n = 0; n < TILE / 8; n += 2) {
                    unsigned keys[4];
                    read_matrices(keys, ks + ((n * 8 + lane / 16 * 8 + lane % 8) * LINE + d * 16 + lane / 8 % 2 * 8));
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        mma(s[r][n], queries[r][d], keys[0], keys[1]);
                        mma(s[r][n + 1], queries[r][d], keys[2], keys[3]);
                    }
                }
#if NEAR
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
                    for (int j = 0; j < 4; j++) {
                        const int key = n * 8 + t * 2 + j % 2, row = warp_row + r * 16 + g + j / 2 * 8;
                        if (row < n_here && key < n_keys)
                            s[r][n][j] = ADJUSTED(s[r][n][j], work.q0 + work.first + row, at + key);
                    }
#endif
            if (key_bias) {
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
                    for (int j = 0; j < 2; j++) {
                        const float bias = bs[n * 8 + t * 2 + j];
                        for (int r = 0; r < ROWS; r++) s[r][n][j] += bias, s[r][n][2 + j] += bias;
                    }
            }
            const bool edge = n_keys < TILE || (is_causal && tile + TILE - 1 > work.first + causal);
            if (edge) {  // some key is hidden from some query of the block
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int n = 0; n < TILE / 8; n++)
                        for (int j = 0; j < 4; j++) {
                            const int key = n * 8 + t * 2 + j % 2, query = work.first + warp_row + r * 16 + g + j / 2 * 8;
                            if (key >= n_keys || (is_causal && tile + key > query + causal)) s[r][n][j] = -CUDART_INF_F;
                        }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                for (int h = 0; h < 2; h++) {
                    float best = highest[r][h];
#pragma unroll
                    for (int n = 0; n < TILE / 8; n++) best = fmaxf(best, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
                    for (int o = 2; o; o >>= 1) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, o));
                    const float base = best > -CUDART_INF_F ? best : 0.0f;  // with nothing seen all is 2^-inf
                    const float shift = base * LOG2E;
                    const float decay = exp2_near((highest[r][h] - base) * LOG2E);  // exactly 1 while the maximum stays
                    highest[r][h] = best;
                    float sum = total[r][h] * decay;
#pragma unroll
                    for (int n = 0; n < TILE / 8; n++)
                        for (int j = 2 * h; j < 2 * h + 2; j++) {
                            s[r][n][j] = exp2_near(fmaf(s[r][n][j], LOG2E, -shift));
                            sum += s[r][n][j];
                        }
                    total[r][h] = sum;
#pragma unroll
                    for (int c = 0; c < DP / 8; c++) out[r][c][2 * h] *= decay, out[r][c][2 * h + 1] *= decay;
                }
            copies_here();
        }
        __syncthreads();  // the values are here, and all are past the keys and their bias
        const int next = tile + TILE, n_next = min(TILE, work.n_seen - next);
        if (n_next > 0) {
            const Index at = work.k0 + next;
            fetch(ks, TILE, key_rows ? k : k + at * k_row, k_row, key_rows ? key_rows + at : nullptr, n_next);
            if (key_bias)
                for (int j = threadIdx.x; j < TILE; j += 128) bs[j] = j < n_next ? key_bias[at + j] : 0.0f;
        }
        if (tile < 0) continue;
#pragma unroll
        for (int m = 0; m < TILE / 16; m++) {  // 16 keys: two products of scores are the left factor of the next
            unsigned weights[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < 4; j++)
                    weights[r][j] = pack_pair(s[r][2 * m + j / 2][j % 2 * 2], s[r][2 * m + j / 2][j % 2 * 2 + 1]);
#pragma unroll
            for (int c = 0; c < DP / 8; c += 2) {
                unsigned values[4];
                read_matrices_transposed(values, vs + ((m * 16 + lane % 16) * LINE + c * 8 + lane / 16 * 8));
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    mma(out[r][c], weights[r], values[0], values[1]);
                    mma(out[r][c + 1], weights[r], values[2], values[3]);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) {
            for (int o = 2; o; o >>= 1) total[r][h] += __shfl_xor_sync(0xffffffffu, total[r][h], o);
            const int row = warp_row + r * 16 + g + 8 * h;
            if (row >= n_here) continue;
#pragma unroll
            for (int c = 0; c < DP / 8; c++)
                for (int j = 0; j < 2; j++) {
                    const int column = c * 8 + t * 2 + j;
                    if (column < D) acc[row * acc_row + column] = out[r][c][2 * h + j];
                }
            if (t == 0) row_max[row * state_row] = highest[r][h], row_sum[row * state_row] = total[r][h];
        }
}
