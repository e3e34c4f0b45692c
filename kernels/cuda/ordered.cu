// Products whose sums go in order of k, a fused multiply-add per term: rows are the same number for number in any company,
// and the same as on a CPU.
//
// Roofline: n k m multiply-adds in float32; 12288 x 768 by 768 x 128 and back: 2.4 G, 72 us at 67 TFLOP/s (H100 SXM).
// Considered: cuBLAS, whose kernels and splits of k change with n; a thread per number (bound by loads). Taken: 64 x 64 tiles
// of 4 x 4 per thread.
#define TILE 64
#define DEPTH 16
#define LINE (TILE + 4)

// out (n, m) = x (n, k) @ weight (k, m). Grid: (row tiles, column tiles).
extern "C" __global__ void __launch_bounds__(256)
ordered_product(const float *x, const float *weight, float *out, int n, int k, int m) {
    SHARED_ARRAY(float, xs, DEPTH * LINE);
    SHARED_ARRAY(float, ws, DEPTH * LINE);
    const int t = threadIdx.x, tx = t % 16, ty = t / 16, row0 = blockIdx.x * TILE, column0 = blockIdx.y * TILE;
    float acc[4][4] = {};
    for (int first = 0; first < k; first += DEPTH) {
        for (int i = t; i < DEPTH * TILE; i += 256) {
            const int row = row0 + i / DEPTH, depth = first + i % DEPTH;
            xs[i % DEPTH * LINE + i / DEPTH] = row < n && depth < k ? x[static_cast<Index>(row) * k + depth] : 0.0f;
        }
        for (int i = t; i < DEPTH * TILE; i += 256) {
            const int depth = first + i / TILE, column = column0 + i % TILE;
            ws[i / TILE * LINE + i % TILE] = depth < k && column < m ? weight[static_cast<Index>(depth) * m + column] : 0.0f;
        }
        __syncthreads();
        const int deep = k - first < DEPTH ? k - first : DEPTH;
        for (int q = 0; q < deep; q++) {
            const float4 x4 = read4(xs, q * LINE + ty * 4), w4 = read4(ws, q * LINE + tx * 4);
            const float a[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int row = row0 + ty * 4 + i, column = column0 + tx * 4 + j;
            if (row < n && column < m) out[static_cast<Index>(row) * m + column] = acc[i][j];
        }
}
