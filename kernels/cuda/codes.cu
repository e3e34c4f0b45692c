// What is done with codes: wire packing, table sums, norms of sums, look-ups, counting.
//
// Roofline: table_sum, which is for few tokens here (many: slices.cu), pack, unpack, gram_sum and counting handle little:
// their time is the launch.
// Considered: sigma inside table_sum (saves two launches per block; to be tried when measured). Taken: a block per token and
// 512 columns, four numbers per thread.
// Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.

// message byte i holds bits 8 i .. 8 i + 7; code j has bits j * bits .. (j + 1) * bits - 1.
extern "C" __global__ void __launch_bounds__(128) pack(const CODE *codes, unsigned char *message, Index n_codes, int bits,
                                                       Index n_bytes) {
    const Index i = static_cast<Index>(blockIdx.x) * 128 + threadIdx.x;
    if (i >= n_bytes) return;
    unsigned value = 0;
    for (Index j = i * 8 / bits; j < n_codes && j * bits < (i + 1) * 8; j++) {
        const int shift = static_cast<int>(j * bits - i * 8);
        const unsigned code = static_cast<unsigned>(codes[j]) & ((1u << bits) - 1u);
        value |= shift >= 0 ? code << shift : code >> -shift;
    }
    message[i] = static_cast<unsigned char>(value);
}

extern "C" __global__ void __launch_bounds__(128) unpack(const unsigned char *message, CODE *codes, Index n_codes, int bits,
                                                         Index n_bytes) {
    const Index j = static_cast<Index>(blockIdx.x) * 128 + threadIdx.x;
    if (j >= n_codes) return;
    const Index first = j * bits / 8;
    unsigned value = 0;
    for (int b = 0; b < 3 && first + b < n_bytes; b++) value |= static_cast<unsigned>(message[first + b]) << 8 * b;
    codes[j] = static_cast<CODE>(value >> static_cast<int>(j * bits % 8) & ((1u << bits) - 1u));
}

// out (n, width) = scale[i] * sum_c tables[c, codes[i, c]] + bias; tables (C, K, width). Grid: (n by stride, columns).
extern "C" __global__ void __launch_bounds__(128)
table_sum(const CODE *codes, const real *tables, const float *scale, const float *bias, real *out, int n, int n_tables,
          int n_codes, int width) {
    const int e = (blockIdx.y * 128 + threadIdx.x) * STEP;
    if (e >= width) return;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        float total[STEP], v[STEP];
        for (int j = 0; j < STEP; j++) total[j] = 0.0f;
        for (int c = 0; c < n_tables; c++) {
            const Index code = codes[static_cast<Index>(i) * n_tables + c];
            load_step(tables + (static_cast<Index>(c) * n_codes + code) * width + e, v);
            for (int j = 0; j < STEP; j++) total[j] += v[j];
        }
        if (scale)
            for (int j = 0; j < STEP; j++) total[j] *= scale[i];
        if (bias)
            for (int j = 0; j < STEP; j++) total[j] += bias[e + j];
        store_step(out + static_cast<Index>(i) * width + e, total);
    }
}

// out (n,) float64 = sum_ab gram[a, b, codes[i, a], codes[i, b]], gram (C, C, K, K) symmetric. A warp per token.
extern "C" __global__ void __launch_bounds__(128)
gram_sum(const CODE *codes, const float *gram, double *out, int n, int n_stages, int n_codes) {
    const int lane = threadIdx.x % 32, i = blockIdx.x * 4 + threadIdx.x / 32;
    if (i >= n) return;  // the whole warp
    const CODE *own = codes + static_cast<Index>(i) * n_stages;
    double total = 0.0;
    for (int pair = lane; pair < n_stages * n_stages; pair += 32) {
        const int a = pair / n_stages, b = pair % n_stages;
        if (a >= b) {
            const Index at = ((static_cast<Index>(a) * n_stages + b) * n_codes + own[a]) * n_codes + own[b];
            total += (a > b ? 2.0 : 1.0) * gram[at];
        }
    }
    for (int o = 16; o; o >>= 1) total += __shfl_xor_sync(0xffffffffu, total, o);
    if (lane == 0) out[i] = total;
}

// out (n, groups * width) = entries[g, codes[i, g]], entries (groups, K, width). Grid: (n by stride, columns).
extern "C" __global__ void __launch_bounds__(128)
look_up(const CODE *codes, const real *entries, real *out, int n, int n_groups, int n_codes, int width) {
    const int e = blockIdx.y * 128 + threadIdx.x, group = e / width;
    if (group >= n_groups) return;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const Index code = codes[static_cast<Index>(i) * n_groups + group];
        out[static_cast<Index>(i) * n_groups * width + e] = entries[(group * static_cast<Index>(n_codes) + code) * width + e % width];
    }
}

// counts (B, n_codes) += 1 for every code of offsets[s] .. offsets[s + 1] - 1. Grid: (codes by stride, B).
extern "C" __global__ void __launch_bounds__(128)
count(const CODE *codes, const Index *offsets, int *counts, int n_codes) {
    const int s = blockIdx.y;
    for (Index i = offsets[s] + blockIdx.x * 128 + threadIdx.x; i < offsets[s + 1]; i += gridDim.x * 128)
        if (codes[i] < n_codes) atomicAdd(counts + static_cast<Index>(s) * n_codes + codes[i], 1);
}

// The codes that occur in each sequence, ascending, from values[s * n_codes] on; the logarithms of their counts; where
// they end. Grid: B.
extern "C" __global__ void __launch_bounds__(128)
distinct(const int *counts, int *values, float *logarithms, Index *ends, int n_codes) {
    SHARED_ARRAY(int, in_warp, 4);
    const int s = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Index start = static_cast<Index>(s) * n_codes;
    Index end = start;
    for (int first = 0; first < n_codes; first += 128) {
        const int code = first + threadIdx.x, n = code < n_codes ? counts[start + code] : 0;
        const unsigned there = __ballot_sync(0xffffffffu, n > 0);
        if (lane == 0) in_warp[warp] = __popc(there);
        __syncthreads();
        Index place = end;
        for (int w = 0; w < 4; w++) {
            if (w < warp) place += in_warp[w];
            end += in_warp[w];
        }
        place += __popc(there & ((1u << lane) - 1u));
        if (n > 0) values[place] = code, logarithms[place] = logf(static_cast<float>(n));
        __syncthreads();  // in_warp is written again
    }
    if (threadIdx.x == 0) ends[s] = end;
}
