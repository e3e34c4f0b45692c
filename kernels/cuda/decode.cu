// Decoding: the heads of one new token per sequence attend to all keys that are kept, a step of online softmax.
// Parameters: D = head width (1 .. 256), HEADS = query heads of a key head that a block works on (1 .. 8).
//
// Shapes: q (n, H D), a row per sequence; keys and values side by side, kv (m, 2 Hkv D), read through `key_rows` where they
// are rows of a table; sequence s has the keys starts[s] .. ends[s] - 1. CAPPED = 1: scores s become cap tanh(s / cap). state (n, H (D + 2)): per row the sums of all
// heads, their maxima, the sums of their weights, as ranks send them to each other. key_bias as in attention.cu.
//
// Roofline: memory, 2 m Hkv D numbers read once for all query heads of a key head: Llama-3-8B, 8192 keys, float16: 34 MB per
// block, 10 us at 3.35 TB/s. By jobs/cuda_code.py for sm_90, not timed: about 115 instructions per key and key head at
// H / Hkv = 4, of the 137 (96 at 4.8 TB/s) that memory leaves time for (132 multiprocessors, 1.7 GHz); with 8 twice as many.
// Considered: attention.cu, whose 64 queries per tile are 63 too many here and whose grid has only a block per head; cuBLAS
// products, one pair per sequence; tensor cores, eight heads to a product (for many query heads per key head, to be tried
// where a GPU can tell). Taken: a key's row by as many lanes as it has pieces of 16 bytes, so that no shared memory is
// needed until the end; each group of lanes has a softmax of its own over every GROUPS-th key, AHEAD keys and values on
// their way at once; long sequences are split over blocks, and merge.cu adds the parts up.
// Times: none yet (docs/explanation/gpu.md).
#ifndef CAPPED
#define CAPPED 0
#endif
#define THREADS 128
#define WARPS (THREADS / 32)
#if HALF && VECTOR && D % 8 == 0
#define PIECE 8
#else
#define PIECE STEP
#endif
#define VECTORS ((D + PIECE - 1) / PIECE)
#define LANES (VECTORS > 16 ? 32 : VECTORS > 8 ? 16 : VECTORS > 4 ? 8 : VECTORS > 2 ? 4 : VECTORS > 1 ? 2 : 1)
#define CHUNKS ((VECTORS + LANES - 1) / LANES)
#define GROUPS (THREADS / LANES)
#define AHEAD (CHUNKS > 2 ? 1 : HEADS * CHUNKS * PIECE > 32 ? 2 : 4)

// This lane's numbers of a row of D, zero beyond it.
__device__ __forceinline__ void fetch(float v[CHUNKS][PIECE], const real *row, int lane, bool there) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int column = (c * LANES + lane) * PIECE;
        if (there && column < D) {
#if PIECE == 8
            load_eight(row + column, v[c]);
#else
            load_step(row + column, v[c]);
#endif
        } else {
            for (int j = 0; j < PIECE; j++) v[c][j] = 0.0f;
        }
    }
}

// With one split into `state`, going on from what is there unless `fresh`; else each into its own of parts (splits, n, ..).
// Grid: (splits, Hkv * tiles of HEADS query heads, n).
extern "C" __global__ void __launch_bounds__(THREADS)
attend_new(const real *q, Index q_row, const real *kv, Index kv_row, const float *key_bias, const int *key_rows,
           const Index *starts, const Index *ends, int n_heads, int n_kv_heads, int fresh, float *state, float *parts
#if CAPPED
           , float cap
#endif
) {
    SHARED_ARRAY(float, sums, WARPS * HEADS * D);
    SHARED_ARRAY(float, maxima, (WARPS + 1) * HEADS);  // the last is that of the state
    SHARED_ARRAY(float, totals, (WARPS + 1) * HEADS);
    const int s = blockIdx.z, splits = gridDim.x, repeat = n_heads / n_kv_heads, tiles = (repeat + HEADS - 1) / HEADS;
    const int kv_head = blockIdx.y / tiles, in_group = blockIdx.y % tiles * HEADS, n_here = min(HEADS, repeat - in_group);
    const int head = kv_head * repeat + in_group, lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const Index begin = starts[s], width = static_cast<Index>(n_heads) * (D + 2);
    const int n_keys = static_cast<int>(ends[s] - begin), share = (n_keys + splits - 1) / splits;
    const int first = blockIdx.x * share, last = min(n_keys, first + share);
    kv += static_cast<Index>(kv_head) * D;
    float query[HEADS][CHUNKS][PIECE], out[HEADS][CHUNKS][PIECE], highest[HEADS], total[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        fetch(query[h], q + s * q_row + static_cast<Index>(head + h) * D, lane, h < n_here);
        highest[h] = -CUDART_INF_F, total[h] = 0.0f;
        for (int c = 0; c < CHUNKS; c++)
            for (int j = 0; j < PIECE; j++) out[h][c][j] = 0.0f;
    }
    for (int at = first; at < last; at += GROUPS * AHEAD) {  // the same for all lanes of a warp
        float scores[AHEAD][HEADS], k[AHEAD][CHUNKS][PIECE], v[AHEAD][CHUNKS][PIECE];
        bool there[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int key = at + u * GROUPS + group;
            there[u] = key < last;
            const real *row = kv + (there[u] ? (key_rows ? key_rows[begin + key] : begin + key) * kv_row : 0);
            fetch(k[u], row, lane, there[u]);
            fetch(v[u], row + static_cast<Index>(n_kv_heads) * D, lane, there[u]);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            float bias = there[u] ? 0.0f : -CUDART_INF_F;
            if (key_bias && there[u]) bias = key_bias[begin + at + u * GROUPS + group];
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float score = 0.0f;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                    for (int j = 0; j < PIECE; j++) score = fmaf(query[h][c][j], k[u][c][j], score);
                for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(0xffffffffu, score, o);
#if CAPPED
                score = cap * tanhf(score / cap);
#endif
                scores[u][h] = score + bias;
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float best = highest[h];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) best = fmaxf(best, scores[u][h]);
            const float base = best > -CUDART_INF_F ? best : 0.0f;  // with nothing seen all is 2^-inf
            const float decay = exp2_near((highest[h] - base) * LOG2E);
            total[h] *= decay, highest[h] = best;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int j = 0; j < PIECE; j++) out[h][c][j] *= decay;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const float p = exp2_near((scores[u][h] - base) * LOG2E);
                total[h] += p;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                    for (int j = 0; j < PIECE; j++) out[h][c][j] = fmaf(p, v[u][c][j], out[h][c][j]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        for (int o = LANES; o < 32; o <<= 1) {
            const float rival = __shfl_xor_sync(0xffffffffu, highest[h], o), best = fmaxf(highest[h], rival);
            const float base = best > -CUDART_INF_F ? best : 0.0f;
            const float mine = exp2_near((highest[h] - base) * LOG2E), other = exp2_near((rival - base) * LOG2E);
            total[h] = total[h] * mine + __shfl_xor_sync(0xffffffffu, total[h], o) * other;
            highest[h] = best;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int j = 0; j < PIECE; j++)
                    out[h][c][j] = out[h][c][j] * mine + __shfl_xor_sync(0xffffffffu, out[h][c][j], o) * other;
        }
    }
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 < LANES) {
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int j = 0; j < PIECE; j++) {
                    const int column = (c * LANES + lane) * PIECE + j;
                    if (column < D) sums[(warp * HEADS + h) * D + column] = out[h][c][j];
                }
            if (lane == 0) maxima[warp * HEADS + h] = highest[h], totals[warp * HEADS + h] = total[h];
        }
    }
    const bool goes_on = splits == 1 && !fresh;
    float *row = (splits == 1 ? state : parts + static_cast<Index>(blockIdx.x) * gridDim.z * width) + s * width;
    const int max_at = n_heads * D + head, sum_at = max_at + n_heads;
    for (int h = threadIdx.x; h < n_here; h += THREADS) {
        maxima[WARPS * HEADS + h] = goes_on ? row[max_at + h] : -CUDART_INF_F;
        totals[WARPS * HEADS + h] = goes_on ? row[sum_at + h] : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_here * D; i += THREADS) {
        const int h = i / D;
        float best = -CUDART_INF_F;
        for (int w = 0; w <= WARPS; w++) best = fmaxf(best, maxima[w * HEADS + h]);
        float sum = goes_on ? row[head * D + i] * weight(maxima[WARPS * HEADS + h], best) : 0.0f;
        float weights = totals[WARPS * HEADS + h] * weight(maxima[WARPS * HEADS + h], best);
        for (int w = 0; w < WARPS; w++) {
            const float part = weight(maxima[w * HEADS + h], best);
            sum = fmaf(sums[(w * HEADS + h) * D + i % D], part, sum);
            weights = fmaf(totals[w * HEADS + h], part, weights);
        }
        row[head * D + i] = sum;
        if (i % D == 0) row[max_at + h] = best, row[sum_at + h] = weights;
    }
}
