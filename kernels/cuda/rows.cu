// Normalisation, activation, rotation: passes between the matrix products, each fused with the bias or the residual sum
// that comes before it. x (n, width) and the like have rows x_row numbers apart.
//
// Roofline: all are bound by memory. normalise reads and writes 2 n width numbers (3 and 2 with a residual sum, where
// PyTorch eager takes three kernels and 7); activate 2; activate_gated 3; rotate 2 of the part that turns.
// At 3.35 TB/s, 1025 x 768 float32: normalise 1.9 us, less than a launch. Times: docs/explanation/gpu.md, by jobs/gpu_bench.py.
// Considered: a block per row (more parallelism for few long rows, but two barriers per row), Welford's single pass
// (one read less from a cache that holds the row). Taken: a warp per row, two passes over a row in the first-level cache.

// out = norm(x); with y: x += y + added first. norm_bias = 0 (null): RMSNorm. `out` may be y, not x. One warp per row.
extern "C" __global__ void __launch_bounds__(128)
normalise(real *x, Index x_row, const real *y, Index y_row, const real *added, const real *weight, const real *norm_bias,
          float eps, real *out, Index out_row, int n, int width) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= n) return;  // the whole warp
    x += row * x_row, out += row * out_row;
    float total = 0.0f, v[STEP], w[STEP], b[STEP];
    for (int i = lane * STEP; i < width; i += 32 * STEP) {
        load_step(x + i, v);
        if (y) {
            load_step(y + row * y_row + i, w);
            for (int j = 0; j < STEP; j++) v[j] += w[j];
            if (added) {
                load_step(added + i, b);
                for (int j = 0; j < STEP; j++) v[j] += b[j];
            }
            store_step(x + i, v);
            load_step(x + i, v);  // as it was rounded; a lane reads only what it wrote
        }
        for (int j = 0; j < STEP; j++) total += v[j];
    }
    const float mean = norm_bias ? warp_sum(total) / width : 0.0f;
    float squares = 0.0f;
    for (int i = lane * STEP; i < width; i += 32 * STEP) {
        load_step(x + i, v);
        for (int j = 0; j < STEP; j++) squares += (v[j] - mean) * (v[j] - mean);
    }
    const float factor = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    for (int i = lane * STEP; i < width; i += 32 * STEP) {
        load_step(x + i, v);
        load_step(weight + i, w);
        for (int j = 0; j < STEP; j++) v[j] = (v[j] - mean) * factor * w[j];
        if (norm_bias) {
            load_step(norm_bias + i, b);
            for (int j = 0; j < STEP; j++) v[j] += b[j];
        }
        store_step(out + i, v);
    }
}

__device__ __forceinline__ float activation(float y, int kind) {
    if (kind == 0) return 0.5f * y * (1.0f + erff(y * 0.70710678f));                // gelu
    if (kind == 1) return y / (1.0f + expf(-1.5957691f * (y + 0.044715f * y * y * y)));  // gelu_tanh
    if (kind == 2) return y > 0.0f ? y : (y == y ? 0.0f : y);                       // relu
    if (kind == 3) return y / (1.0f + expf(-y));                                    // silu
    return y / (1.0f + expf(-1.702f * y));                                          // quick_gelu
}

// x = act(x + bias), or with a gate x = (x + bias) * act(gate + gate_bias). kind < 0: x += bias alone.
// add != 0: x += add. Grid: (steps of a row, rows by stride).
extern "C" __global__ void __launch_bounds__(128)
activate(real *x, Index x_row, const real *add, Index add_row, const real *bias, const real *gate, Index gate_row,
         const real *gate_bias, int kind, int n, int width) {
    const int i = (blockIdx.x * 128 + threadIdx.x) * STEP;
    if (i >= width) return;
    float b[STEP], c[STEP], v[STEP], g[STEP];
    for (int j = 0; j < STEP; j++) b[j] = c[j] = 0.0f;
    if (bias) load_step(bias + i, b);
    if (gate_bias) load_step(gate_bias + i, c);
    for (int row = blockIdx.y; row < n; row += gridDim.y) {
        load_step(x + row * x_row + i, v);
        for (int j = 0; j < STEP; j++) v[j] += b[j];
        if (add) {
            load_step(add + row * add_row + i, g);
            for (int j = 0; j < STEP; j++) v[j] += g[j];
        }
        if (gate) {
            load_step(gate + row * gate_row + i, g);
            for (int j = 0; j < STEP; j++) v[j] *= activation(g[j] + c[j], kind);
        } else if (kind >= 0) {
            for (int j = 0; j < STEP; j++) v[j] = activation(v[j], kind);
        }
        store_step(x + row * x_row + i, v);
    }
}

// The first n_heads heads of x (n, W): numbers a and a + d/2 of a head turn by turns (n, d), cosines before sines.
// Grid: (pairs of a row, rows by stride).
extern "C" __global__ void __launch_bounds__(128)
rotate(real *x, Index x_row, const float *turns, int n, int n_heads, int d_head) {
    const int half = d_head / 2, pair = blockIdx.x * 128 + threadIdx.x;
    if (pair >= n_heads * half) return;
    const int a = pair % half, first = pair / half * d_head + a;
    for (int row = blockIdx.y; row < n; row += gridDim.y) {
        const float c = turns[static_cast<Index>(row) * d_head + a], s = turns[static_cast<Index>(row) * d_head + half + a];
        real *p = x + row * x_row + first;
        const float u = to_float(p[0]), v = to_float(p[half]);
        p[0] = to_real(u * c - v * s), p[half] = to_real(v * c + u * s);
    }
}

// out (m, width) float32: sums of the rows starts[i] .. starts[i + 1] - 1 of x (n, width). Grid: (columns, m by stride).
extern "C" __global__ void __launch_bounds__(128)
segment_sum(const real *x, Index x_row, const Index *starts, float *out, int m, int n, int width) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= width) return;
    for (int s = blockIdx.y; s < m; s += gridDim.y) {
        const Index end = s + 1 < m ? starts[s + 1] : n;
        float total = 0.0f;
        for (Index row = starts[s]; row < end; row++) total += to_float(x[row * x_row + i]);
        out[static_cast<Index>(s) * width + i] = total;
    }
}
