// States of a softmax over disjoint keys, made into one: of blocks of decode.cu, or of ranks (the log-sum-exp merge).
// Parameter: D = head width. A state is as in decode.cu: (n, H (D + 2)) float32, sums, maxima, sums of weights.
//
// Roofline: reads n_parts n H (D + 2) numbers, 32 parts of Llama-3-8B's 32 heads: 0.5 MB; its time is the launch.
// Considered: in the block that ends last, by a counter (a launch less, and an atomic). Taken: a block per head and row.
// Times: none yet (docs/explanation/gpu.md).
#define MOST 1024  // parts

// state = parts added up, and what was there unless `fresh`. Grid: (H, n).
extern "C" __global__ void __launch_bounds__(128)
merge(const float *parts, float *state, int n_parts, int n_heads, int fresh) {
    SHARED_ARRAY(float, factors, MOST);
    SHARED_ARRAY(float, maxima, 4);
    SHARED_ARRAY(float, totals, 4);
    const int t = threadIdx.x, head = blockIdx.x, max_at = n_heads * D + head, sum_at = max_at + n_heads;
    const Index width = static_cast<Index>(n_heads) * (D + 2), next = gridDim.y * width;
    parts += blockIdx.y * width, state += blockIdx.y * width;
    const float before = fresh ? -CUDART_INF_F : state[max_at];
    float best = before;
    for (int p = t; p < n_parts; p += 128) best = fmaxf(best, parts[p * next + max_at]);
    for (int o = 16; o; o >>= 1) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, o));
    if (t % 32 == 0) maxima[t / 32] = best;
    __syncthreads();
    for (int w = 0; w < 4; w++) best = fmaxf(best, maxima[w]);
    const float kept = weight(before, best);
    float total = t == 0 && !fresh ? state[sum_at] * kept : 0.0f;
    for (int p = t; p < n_parts; p += 128) {
        const float factor = weight(parts[p * next + max_at], best);
        factors[p] = factor;
        total += parts[p * next + sum_at] * factor;
    }
    total = warp_sum(total);
    if (t % 32 == 0) totals[t / 32] = total;
    __syncthreads();
    for (int i = t; i < D; i += 128) {
        float sum = fresh ? 0.0f : state[head * D + i] * kept;
#pragma unroll 8
        for (int p = 0; p < n_parts; p++) sum = fmaf(parts[p * next + head * D + i], factors[p], sum);
        state[head * D + i] = sum;
    }
    if (t == 0) state[max_at] = best, state[sum_at] = totals[0] + totals[1] + totals[2] + totals[3];
}
