// CUDA C kernels on the CPU, to test what they compute: one OS thread, every CUDA thread of a block a fiber.
//
// What is an error here, where a GPU would go wrong silently or hang: a barrier that some threads never reach, a warp
// intrinsic whose lanes are not all there or disagree, an argument of the wrong width, an access outside an array
// (arrays end at a page that may not be touched), a race in shared memory (two threads touch a number, one writes, no
// barrier between), unwritten shared memory (it is NaN). Threads run in an order that can be chosen between barriers.
#pragma once
#undef _FORTIFY_SOURCE
#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define CUDART_INF_F __builtin_inff()

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

namespace emulated {
enum State { READY, AT_BARRIER, AT_WARP, DONE };
enum Op { SHUFFLE_XOR, SHUFFLE, BALLOT, SYNC_WARP, EXCHANGE };
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool started;
    State state;
    unsigned mask;
    int op, lane_argument;
    uint64_t in, out;
    uint32_t words[8];  // what EXCHANGE shows to the other lanes
    struct Copy { void *to; const void *from; };
    std::vector<Copy> copies;  // begun and not waited for
};
static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static const size_t STACK = 128 * 1024;
static int current, n_threads, order;
static jmp_buf scheduler;
static sigjmp_buf fault;
static char message[512];
static uint32_t shown[32][32][8];  // per warp and lane, as of the last EXCHANGE
static void (*body)();

// ---- races in shared memory: who touched each two bytes last, and since which barrier
struct Touch { int writer, reader, other_reader; unsigned write_epoch, write_warp_epoch, read_epoch, read_warp_epoch; };
static std::vector<Touch> touches;
static std::vector<char> dynamic_memory;
static char *dynamic_base;
static size_t dynamic_bytes;
static unsigned epoch, warp_epochs[32];
extern "C" {
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}
static bool raced;

static void note_race(const char *what, int a, int b) {
    if (!raced)
        snprintf(message, sizeof message, "race in shared memory: threads %d and %d %s with no barrier between (block %u,%u,%u)",
                 a, b, what, blockIdx.x, blockIdx.y, blockIdx.z);
    raced = true;
}
static bool ordered(int other, unsigned since, unsigned since_warp) {
    if (other < 0 || other == current || since < epoch) return true;
    return other / 32 == current / 32 && since_warp < warp_epochs[current / 32];
}
static bool look_for_races;
static void touch(const void *address, size_t bytes, bool write) {
    if (!look_for_races) return;
    const char *p = static_cast<const char *>(address);
    size_t at;
    if (p >= dynamic_base && p + bytes <= dynamic_base + dynamic_bytes) {
        at = p - dynamic_base;
    } else if (__start_cuda_shared && p >= __start_cuda_shared && p + bytes <= __stop_cuda_shared) {
        at = (dynamic_bytes + 15) / 16 * 16 + (p - __start_cuda_shared);
    } else {
        snprintf(message, sizeof message, "thread %d is outside of shared memory (block %u,%u,%u)", current, blockIdx.x,
                 blockIdx.y, blockIdx.z);
        siglongjmp(fault, 2);
    }
    for (size_t i = at / 2; i < (at + bytes + 1) / 2; i++) {
        Touch &t = touches[i];
        if (!ordered(t.writer, t.write_epoch, t.write_warp_epoch)) note_race(write ? "write" : "write and read", t.writer, current);
        if (write) {
            if (!ordered(t.reader, t.read_epoch, t.read_warp_epoch)) note_race("read and write", t.reader, current);
            if (!ordered(t.other_reader, t.read_epoch, t.read_warp_epoch)) note_race("read and write", t.other_reader, current);
            t.writer = current, t.write_epoch = epoch, t.write_warp_epoch = warp_epochs[current / 32];
            t.reader = t.other_reader = -1;
        } else {
            if (t.read_epoch != epoch) t.reader = t.other_reader = -1;
            if (t.reader < 0) t.reader = current;
            else if (t.reader != current && (t.other_reader < 0 || t.other_reader / 32 == t.reader / 32)) t.other_reader = current;
            t.read_epoch = epoch, t.read_warp_epoch = warp_epochs[current / 32];
        }
    }
}

// ---- fibers
static void set_index(int t) {
    threadIdx.x = t % blockDim.x, threadIdx.y = t / blockDim.x % blockDim.y, threadIdx.z = t / (blockDim.x * blockDim.y);
}
static __attribute__((noinline)) void park();
static void entry() {
    for (;;) {  // fibers outlive the block: making them is what costs
        body();
        fibers[current].state = DONE;
        park();
    }
}
static __attribute__((noinline)) void park() { if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1); }
static __attribute__((noinline)) void resume(int t) {
    current = t;
    set_index(t);
    if (_setjmp(scheduler)) return;
    Fiber &f = fibers[t];
    if (f.started) _longjmp(f.place, 1);
    f.started = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = &stacks[t * STACK], f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
    setcontext(&f.context);
}
static bool fail(const char *format, int a = 0, int b = 0) {
    snprintf(message, sizeof message, format, a, b);
    const size_t n = strlen(message);
    snprintf(message + n, sizeof message - n, " (block %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    return false;
}
static bool exchange(int warp) {  // the lanes named in the mask are all there: let them see each other's numbers
    const int low = warp * 32, high = low + 32 < n_threads ? low + 32 : n_threads;
    int first = low;
    while (fibers[first].state != AT_WARP) first++;
    const unsigned mask = fibers[first].mask;
    uint64_t ballot = 0;
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        if (low + lane >= high || fibers[low + lane].state != AT_WARP)
            return fail("warp intrinsic: lane %d of warp %d is named in the mask but is not there", lane, warp);
        Fiber &f = fibers[low + lane];
        if (f.mask != mask || f.op != fibers[first].op)
            return fail("warp intrinsic: the lanes of warp %d disagree on mask or operation", warp);
        if (f.in) ballot |= 1ull << lane;
    }
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        Fiber &f = fibers[low + lane];
        const int source = f.op == SHUFFLE_XOR ? lane ^ f.lane_argument : f.lane_argument;
        if (f.op == BALLOT) f.out = ballot;
        if (f.op == EXCHANGE) memcpy(shown[warp][lane], f.words, sizeof f.words);
        if (f.op == SHUFFLE_XOR || f.op == SHUFFLE) {
            if (!(mask >> source & 1)) return fail("shuffle: lane %d reads lane %d, which is not in the mask", lane, source);
            f.out = fibers[low + source].in;
        }
    }
    if (fibers[first].op == SYNC_WARP) warp_epochs[warp]++;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) fibers[low + lane].state = READY;
    return true;
}
static bool run_block() {
    for (int t = 0; t < n_threads; t++) fibers[t].state = READY, fibers[t].copies.clear();
    epoch++;
    uint64_t random = 0x9E3779B97F4A7C15ull * (order + 1);
    std::vector<int> turn(n_threads);
    for (int i = 0; i < n_threads; i++) turn[i] = order == 1 ? n_threads - 1 - i : i;
    for (;;) {
        if (order >= 2)
            for (int i = n_threads - 1; i > 0; i--) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                std::swap(turn[i], turn[(random >> 33) % (i + 1)]);
            }
        for (int i = 0; i < n_threads; i++)
            if (fibers[turn[i]].state == READY) resume(turn[i]);
        if (raced) return false;
        int done = 0, waiting = 0;
        bool warped = false;
        for (int t = 0; t < n_threads; t++) done += fibers[t].state == DONE, waiting += fibers[t].state == AT_BARRIER;
        for (int w = 0; w * 32 < n_threads; w++)
            for (int t = w * 32; t < n_threads && t < w * 32 + 32; t++)
                if (fibers[t].state == AT_WARP) {
                    if (!exchange(w)) return false;
                    warped = true;
                    break;
                }
        if (done == n_threads) {
            for (int t = 0; t < n_threads; t++)
                if (!fibers[t].copies.empty()) return fail("thread %d never waited for what it copies to shared memory", t);
            return true;
        }
        if (warped) continue;
        if (waiting == n_threads) {
            epoch++;
            for (int t = 0; t < n_threads; t++) fibers[t].state = READY;
            continue;
        }
        return fail("__syncthreads(): %d threads wait, %d have already returned", waiting, done);
    }
}
static void on_fault(int) { siglongjmp(fault, 1); }

template <class... A> static void (*kernel_of)(A...);
static void **arguments;
template <class... A, size_t... I> static void call(std::index_sequence<I...>) {
    kernel_of<A...>(*static_cast<std::decay_t<A> *>(arguments[I])...);
}
template <class... A> static void call_all() { call<A...>(std::index_sequence_for<A...>{}); }

template <class... A>
static const char *launch(void (*kernel)(A...), const unsigned *grid, const unsigned *block, size_t shared_bytes, int in_order,
                          int races, int n, const size_t *sizes, void **given) {
    message[0] = 0, raced = false, look_for_races = races;
    const size_t wanted[] = {sizeof(A)..., 0};
    if (n != static_cast<int>(sizeof...(A))) {
        snprintf(message, sizeof message, "the kernel takes %d arguments, %d are given", static_cast<int>(sizeof...(A)), n);
        return message;
    }
    for (int i = 0; i < n; i++)
        if (sizes[i] != wanted[i]) {
            snprintf(message, sizeof message, "argument %d: the kernel takes %zu bytes, %zu are given", i, wanted[i], sizes[i]);
            return message;
        }
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    n_threads = block[0] * block[1] * block[2], order = in_order;
    if (n_threads < 1 || n_threads > 1024) return "a block has 1 to 1024 threads";
    if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[1] > 65535 || grid[2] > 65535) return "a grid has 1 to 65535 blocks in y and z";
    if (shared_bytes > 163 * 1024) return "more than 163 KiB of shared memory, which sm_80 does not have";
    if (fibers.size() < static_cast<size_t>(n_threads)) {
        fibers.assign(n_threads, Fiber{});
        stacks.assign(n_threads * STACK, 0);
    }
    if (dynamic_memory.size() < shared_bytes + 16) dynamic_memory.resize(shared_bytes + 16);
    dynamic_base = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(dynamic_memory.data()) + 15) / 16 * 16);
    dynamic_bytes = shared_bytes;
    const size_t fixed = __start_cuda_shared ? __stop_cuda_shared - __start_cuda_shared : 0;
    touches.resize(((shared_bytes + 15) / 16 * 16 + fixed + 1) / 2, Touch{-1, -1, -1, 0, 0, 0, 0});
    kernel_of<A...> = kernel, arguments = given, body = call_all<A...>;
    struct sigaction action = {}, old_segv, old_bus;
    action.sa_handler = on_fault;
    sigaction(SIGSEGV, &action, &old_segv), sigaction(SIGBUS, &action, &old_bus);
    const int how = sigsetjmp(fault, 1);
    if (how == 1)
        snprintf(message, sizeof message, "thread %d is outside of an array (block %u,%u,%u)", current, blockIdx.x, blockIdx.y, blockIdx.z);
    bool fine = how == 0;
    for (blockIdx.z = 0; fine && blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; fine && blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; fine && blockIdx.x < grid[0]; blockIdx.x++) {
                memset(dynamic_base, 0xFF, shared_bytes);
                if (fixed) memset(__start_cuda_shared, 0xFF, fixed);
                fine = run_block();
            }
    sigaction(SIGSEGV, &old_segv, nullptr), sigaction(SIGBUS, &old_bus, nullptr);
    if (!fine)  // fibers are stuck somewhere in the kernel
        for (Fiber &f : fibers) f.started = false;
    return message;
}

template <class T> static T warp_op(unsigned mask, T value, Op op, int argument) {
    static_assert(sizeof(T) <= 8, "a shuffle of more than 8 bytes");
    Fiber &f = fibers[current];
    f.in = 0;
    memcpy(&f.in, &value, sizeof value);
    f.mask = mask, f.op = op, f.lane_argument = argument, f.state = AT_WARP;
    park();
    T result;
    memcpy(&result, &fibers[current].out, sizeof result);
    return result;
}
static void show(const uint32_t *words, int n) {
    memcpy(fibers[current].words, words, 4 * n);
    warp_op<int>(0xffffffffu, 0, EXCHANGE, 0);
}
static void check_aligned(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) {
        snprintf(message, sizeof message, "thread %d reads or writes %zu bytes at a misaligned address", current, bytes);
        siglongjmp(fault, 2);
    }
}
}  // namespace emulated

static inline void __syncthreads() { emulated::fibers[emulated::current].state = emulated::AT_BARRIER; emulated::park(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::warp_op<int>(mask, 0, emulated::SYNC_WARP, 0); }
template <class T> static T __shfl_sync(unsigned mask, T v, int lane) { return emulated::warp_op(mask, v, emulated::SHUFFLE, lane & 31); }
template <class T> static T __shfl_xor_sync(unsigned mask, T v, int k) { return emulated::warp_op(mask, v, emulated::SHUFFLE_XOR, k); }
static inline unsigned __ballot_sync(unsigned mask, int p) {
    return static_cast<unsigned>(emulated::warp_op<uint64_t>(mask, p != 0, emulated::BALLOT, 0));
}
template <class T, class U> static T atomicAdd(T *p, U v) { const T old = *p; *p = old + v; return old; }  // one OS thread
template <class T> static T atomicMin(T *p, T v) { const T old = *p; if (v < old) *p = v; return old; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
static inline float __fmul_rn(float x, float y) { return x * y; }  // g++ is told to fuse nothing
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __int2float_rn(int x) { return static_cast<float>(x); }
static inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
template <class T> static T min(T a, T b) { return a < b ? a : b; }
template <class T> static T max(T a, T b) { return a > b ? a : b; }

// ---- shared memory
template <class T> struct Seen {  // one number of shared memory
    T *p;
    operator T() const { emulated::touch(p, sizeof(T), false); return *p; }
    T operator=(T v) const { emulated::touch(p, sizeof(T), true); return *p = v; }
    T operator=(const Seen &other) const { return *this = static_cast<T>(other); }
};
template <class T> struct Shared {
    T *p;
    Seen<T> operator[](long long i) const { return {p + i}; }
    Shared operator+(long long i) const { return {p + i}; }
};
template <class T> static Shared<T> shared_at(char *base, int bytes) { return {reinterpret_cast<T *>(base + bytes)}; }
#define SHARED_ARRAY(type, name, size) \
    static __attribute__((section("cuda_shared"), aligned(16))) type name##_memory[size]; \
    const Shared<type> name = {name##_memory}
#define SHARED_DYNAMIC(name) char *const name = emulated::dynamic_base
static inline float4 read4(Shared<float> s, long long i) {
    if (reinterpret_cast<uintptr_t>(s.p + i) % 16) { snprintf(emulated::message, 512, "a misaligned read of four numbers"); siglongjmp(emulated::fault, 2); }
    emulated::touch(s.p + i, 16, false);
    return *reinterpret_cast<float4 *>(s.p + i);
}
template <class T> static T *shared_numbers(Shared<T> s, int i, int n, bool write) {
    if (reinterpret_cast<uintptr_t>(s.p + i) % (n * sizeof(T))) { snprintf(emulated::message, 512, "misaligned numbers of shared memory"); siglongjmp(emulated::fault, 2); }
    emulated::touch(s.p + i, n * sizeof(T), write);
    return s.p + i;
}
template <class T> static const T *shared_span(Shared<T> s, int i, int n) { return shared_numbers(s, i, n, false); }
template <class T> static T *shared_place(Shared<T> s, int i, int n) { return shared_numbers(s, i, n, true); }
#define ALIGNED(p, bytes) emulated::check_aligned(p, bytes)
static inline float exp2_near(float x) { return exp2f(x); }

// ---- half, where the compiler has it
#if HALF
struct __half { _Float16 v; };
static inline float __half2float(__half h) { return static_cast<float>(h.v); }
static inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
static inline unsigned short __half_as_ushort(__half h) { unsigned short u; memcpy(&u, &h, 2); return u; }
static inline __half __ushort_as_half(unsigned short u) { __half h; memcpy(&h, &u, 2); return h; }
static inline float half_of(unsigned pair, int high) { return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16 * high))); }

// ldmatrix.x4 (PTX ISA): lane l reads the row at its address; lane 4 g + t gets row g, columns 2 t and 2 t + 1 of each.
static inline void show_row(Shared<__half> row) {
    if (reinterpret_cast<uintptr_t>(row.p) % 16) { snprintf(emulated::message, 512, "ldmatrix: a misaligned row"); siglongjmp(emulated::fault, 2); }
    emulated::touch(row.p, 16, false);
    uint32_t words[4];
    memcpy(words, row.p, 16);
    emulated::show(words, 4);
}
static inline void read_matrices(unsigned r[4], Shared<__half> row) {
    show_row(row);
    const int lane = emulated::current % 32;
    for (int m = 0; m < 4; m++) r[m] = emulated::shown[emulated::current / 32][8 * m + lane / 4][lane % 4];
}
// ldmatrix.x4.trans: lane 4 g + t gets column g, rows 2 t and 2 t + 1.
static inline void read_matrices_transposed(unsigned r[4], Shared<__half> row) {
    show_row(row);
    const int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
    const auto &shown = emulated::shown[emulated::current / 32];
    for (int m = 0; m < 4; m++) {
        const unsigned low = shown[8 * m + 2 * t][g / 2] >> 16 * (g % 2) & 0xffff;
        const unsigned high = shown[8 * m + 2 * t + 1][g / 2] >> 16 * (g % 2) & 0xffff;
        r[m] = low | high << 16;
    }
}
// cp.async: what is copied comes when it is waited for, and until then its place must not be touched.
static inline void copy16(Shared<__half> to, const __half *from, bool there) {
    if (reinterpret_cast<uintptr_t>(to.p) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
        snprintf(emulated::message, 512, "cp.async: a misaligned address");
        siglongjmp(emulated::fault, 2);
    }
    emulated::touch(to.p, 16, true);
    emulated::fibers[emulated::current].copies.push_back({to.p, there ? from : nullptr});
}
static inline void copies_here() {
    auto &copies = emulated::fibers[emulated::current].copies;
    for (const auto &copy : copies) {
        emulated::touch(copy.to, 16, true);
        if (copy.from) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    copies.clear();
}
// mma.m16n8k16 (PTX ISA, "Matrix fragments"): lane 4 g + t has of a the rows g, g + 8 and the columns 2 t, 2 t + 1 (then
// + 8), of b the rows 2 t, 2 t + 1 (then + 8) of column g, of c the rows g, g + 8 and the columns 2 t, 2 t + 1.
static inline void mma(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    emulated::show(words, 6);
    const int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
    const auto &shown = emulated::shown[emulated::current / 32];
    for (int j = 0; j < 4; j++)
        for (int k = 0; k < 16; k++) {
            const int holder = k % 8 / 2, column = 2 * t + j % 2;
            const float left = half_of(shown[4 * g + holder][j / 2 + k / 8 * 2], k % 2);
            const float right = half_of(shown[4 * column + holder][4 + k / 8], k % 2);
            c[j] += left * right;
        }
}
#endif

// ---- arrays between pages that may not be touched
extern "C" char *guarded(size_t bytes) {  // its end, rounded up to 16 bytes, is the end of a page
    const size_t page = sysconf(_SC_PAGESIZE), room = (bytes + 15) / 16 * 16, pages = (room + page - 1) / page * page;
    char *all = static_cast<char *>(mmap(nullptr, pages + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (all == MAP_FAILED) return nullptr;
    memset(all + page, 0xFF, pages);
    mprotect(all, page, PROT_NONE), mprotect(all + page + pages, page, PROT_NONE);
    return all + page + pages - room;
}
extern "C" int release(char *array, size_t bytes) {  // -> whether something was written before or just after it
    const size_t page = sysconf(_SC_PAGESIZE), room = (bytes + 15) / 16 * 16, pages = (room + page - 1) / page * page;
    char *first = array + room - pages;
    int touched = 0;
    for (char *p = first; p < array; p++) touched |= *p != static_cast<char>(0xFF);
    for (char *p = array + bytes; p < array + room; p++) touched |= *p != static_cast<char>(0xFF);
    munmap(first - page, pages + 2 * page);
    return touched;
}
