// What both kernels of attention share. Parameters: D = head width (1 .. 256). acc, row_max, row_sum carry the softmax from
// step to step in float32, so that any split of the keys gives the same: the log-sum-exp merge.
//
// Shapes: queries (n, H D), keys and values (m, Hkv D), by head and row strides; H / Hkv query heads read one key head.
// Sequence s has the queries q_offsets[s] .. q_offsets[s + 1] - 1 and the keys k_offsets[s] .. k_ends[s] - 1 (null: up to
// k_offsets[s + 1]). Query i sees key j when j <= i + causal. key_bias (m,) is added to the scores: -inf hides a key,
// log(count) counts it. A block with nothing to see leaves the state alone. Grid: (query tiles, H, B).
// With NEAR = 1 scores are capped, biased by distance and hidden beyond a window (kernels/near.py): relative (H, 2 most + 1)
// or null, query_places and key_places (int32, of all queries and keys) or null.
#ifndef NEAR
#define NEAR 0
#endif
#define TILE 64  // keys
#define DP ((D + 15) / 16 * 16)

// Which part of the keys and queries a block works on.
struct Work {
    Index q0, k0;
    int n_queries, first, n_seen;  // of the tile: first query, keys that its last query sees

    __device__ Work(int tile, const Index *q_offsets, const Index *k_offsets, const Index *k_ends, int is_causal, int causal) {
        const int s = blockIdx.z;
        q0 = q_offsets[s], k0 = k_offsets[s];
        n_queries = static_cast<int>(q_offsets[s + 1] - q0);
        first = blockIdx.x * tile;
        n_seen = static_cast<int>((k_ends ? k_ends[s] : k_offsets[s + 1]) - k0);
        if (is_causal) n_seen = min(n_seen, min(n_queries, first + tile) + causal);
        if (first >= n_queries) n_seen = 0;
    }
};

#define ARGUMENTS                                                                                                        \
    const real *q, Index q_head, Index q_row, const real *k, Index k_head, Index k_row, const real *v, Index v_head,     \
        Index v_row, const float *key_bias, const int *key_rows, const Index *q_offsets, const Index *k_offsets,         \
        const Index *k_ends, int repeat, int is_causal, int causal, float *acc, Index acc_head, Index acc_row,           \
        float *row_max, float *row_sum, Index state_head, Index state_row ADJUSTMENTS

#if NEAR
#define ADJUSTMENTS                                                                                                      \
    , float cap, int window, const float *relative, int most, const int *query_places, const int *key_places

// A score, of a query and a key by their indices among all.
__device__ __forceinline__ float adjusted(float score, int head, Index query, Index key, float cap, int window,
                                          const float *relative, int most, const int *query_places, const int *key_places) {
    if (cap > 0.0f) score = cap * tanhf(score / cap);
    if (!query_places) return score;
    const int distance = key_places[key] - query_places[query];
    if (window && (distance >= window || distance <= -window)) return -CUDART_INF_F;
    if (!relative) return score;
    return score + relative[head * (2 * most + 1) + most + max(-most, min(most, distance))];
}
#define ADJUSTED(score, query, key) \
    adjusted(score, head, query, key, cap, window, relative, most, query_places, key_places)
#else
#define ADJUSTMENTS
#endif
