// Put before every .cu file of this folder. Parameters: HALF = 1 makes `real` __half, else it is float; VECTOR = 1 says
// that rows of `real` may be read and written four numbers at a time. Sums are float32 whatever `real` is.
#ifndef EMULATED  // the CPU emulation of tests/cuda_emulation brings all of this itself
#define ALIGNED(p, bytes)  // looked at under emulation
#define CUDART_INF_F __int_as_float(0x7f800000)
template <class T> using Shared = T *;  // into shared memory; under emulation, accesses through it are checked for races
#define SHARED_ARRAY(type, name, size) __shared__ type name[size]
#define SHARED_DYNAMIC(name) extern __shared__ __align__(16) char name[]
template <class T> __device__ __forceinline__ Shared<T> shared_at(char *base, int bytes) {
    return reinterpret_cast<T *>(base + bytes);
}
__device__ __forceinline__ float4 read4(const float *p, int i) { return *reinterpret_cast<const float4 *>(p + i); }
// 2^x to 2^-22.
__device__ __forceinline__ float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// n numbers from p[i] on, to be read or written together.
template <class T> __device__ __forceinline__ const T *shared_span(const T *p, int i, int) { return p + i; }
template <class T> __device__ __forceinline__ T *shared_place(T *p, int i, int) { return p + i; }
#if HALF
#include <cuda_fp16.h>
// Four 8 x 8 matrices of halves, transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void read_matrices_transposed(unsigned r[4], const __half *row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
// The same, as they are.
__device__ __forceinline__ void read_matrices(unsigned r[4], const __half *row) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
// Begin to copy 16 bytes to shared memory, zeros unless `there`; copies_here() waits for all that this thread began.
__device__ __forceinline__ void copy16(__half *to, const __half *from, bool there) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to)), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_here() { asm volatile("cp.async.wait_all;" : : : "memory"); }
// c (16 x 8, float32) += a (16 x 16, half) b (16 x 8, half), in the register layout of PTX's mma.m16n8k16.
__device__ __forceinline__ void mma(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
                 " {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
#endif

typedef long long Index;
#if HALF
typedef __half real;
__device__ __forceinline__ float to_float(real x) { return __half2float(x); }
__device__ __forceinline__ real to_real(float x) { return __float2half_rn(x); }
__device__ __forceinline__ unsigned pack_pair(float low, float high) {
    return static_cast<unsigned>(__half_as_ushort(__float2half_rn(low))) |
           static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
}
#else
typedef float real;
__device__ __forceinline__ float to_float(real x) { return x; }
__device__ __forceinline__ real to_real(float x) { return x; }
#endif

#if VECTOR
#define STEP 4
#else
#define STEP 1
#endif
#define LOG2E 1.44269504f

// STEP numbers as float32, and back.
__device__ __forceinline__ void load_step(const real *p, float v[STEP]) {
    ALIGNED(p, STEP * sizeof(real));
#if VECTOR && HALF
    const uint2 words = *reinterpret_cast<const uint2 *>(p);
    v[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(words.x & 0xffff)));
    v[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words.x >> 16)));
    v[2] = __half2float(__ushort_as_half(static_cast<unsigned short>(words.y & 0xffff)));
    v[3] = __half2float(__ushort_as_half(static_cast<unsigned short>(words.y >> 16)));
#elif VECTOR
    const float4 four = *reinterpret_cast<const float4 *>(p);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
#else
    v[0] = to_float(*p);
#endif
}
__device__ __forceinline__ void store_step(real *p, const float v[STEP]) {
    ALIGNED(p, STEP * sizeof(real));
#if VECTOR && HALF
    *reinterpret_cast<uint2 *>(p) = make_uint2(pack_pair(v[0], v[1]), pack_pair(v[2], v[3]));
#elif VECTOR
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
#else
    *p = to_real(v[0]);
#endif
}

#if HALF
__device__ __forceinline__ void load_eight(const real *p, float v[8]) {
    ALIGNED(p, 16);
    const uint4 words = *reinterpret_cast<const uint4 *>(p);
    const unsigned all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(all[i] & 0xffff)));
        v[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(all[i] >> 16)));
    }
}
#endif

__device__ __forceinline__ float warp_sum(float x) {
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}
// Of a key in a softmax; exactly 0 for a hidden one, and for the maximum of no keys.
__device__ __forceinline__ float weight(float score, float highest) {
    return score == -CUDART_INF_F ? 0.0f : expf(score - highest);
}
