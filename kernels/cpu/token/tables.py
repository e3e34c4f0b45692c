"""Columns of the tables that tell the compiled token what to compute. Addresses are bytes in memory, 0 for none."""

#: formats of matrices; those packed, and those in blocks, lie in strips of 16 outputs, the others row by row; rows of
#: FLOAT32_ROWS are outputs
NONE, FLOAT32, FLOAT16, BFLOAT16, INT8, PACKED_BFLOAT16, PACKED_INT8, Q8_0, Q4_0, Q4_1, FLOAT32_ROWS = range(11)

#: of a matrix: its format, where it lies, its rows and columns, bytes from row to row (or strip to strip), float32
#: factors of columns, and the first column of the result that it gives
FORMAT, ADDRESS, N_IN, N_OUT, STRIDE, SCALE, COLUMN, N_MATRIX = range(8)

#: matrices of a block, each of N_MATRIX columns; QKV are three side by side, or all in the first
Q, K, V, O, FC1, GATE, FC2, N_MATRICES = range(8)  # noqa: E741

#: columns of a block after its matrices: addresses of float32 vectors
_FIRST = N_MATRICES * N_MATRIX
(
    B_QKV,
    B_O,
    B_FC1,
    B_GATE,
    B_FC2,
    NORM1,
    NORM1_BIAS,
    NORM2,
    NORM2_BIAS,
    POST1,
    POST1_BIAS,
    POST2,
    POST2_BIAS,
    Q_NORM,
    K_NORM,
    TURNS,  # which turns the block's heads take, from 1; 0: none
    WINDOW,  # a new token sees keys nearer than this; 0: all
    N_BLOCK,
) = range(_FIRST, _FIRST + 18)

#: numbers of a model, the same for all blocks
(
    D_MODEL,
    N_HEADS,
    N_KV_HEADS,
    D_HEAD,
    D_FF,
    NORM_FIRST,
    RMS,
    GATED,
    OUTPUT_NORMS,
    PARALLEL,
    SHARED_NORM,
    QK_NORM,  # 0: none, 1: every head by one weight, 2: LayerNorm of every head, 3: all heads together
    ACTIVATION,
    SITE,  # what is noted of every block: 0 nothing, 1 its input, 2 what its attention takes, 3 its keys and values
    SEVERAL,  # whether a sequence may have several new tokens
    ATTENDS,  # whether attention is computed, else the caller does it
    N_LAYERS,  # the block after the last one is the head: its norm is NORM1, its matrix Q
    VOCABULARY,
    N_MODEL,
) = range(19)

#: of a new token, in the order of their positions: its sequence, its position, how many of the sequence's last keys
#: come after it, and whether its own key and value stay here, as the last of those that it sees
SEQUENCE, POSITION, BEHIND, KEPT, N_NEW = range(5)

#: products of a block, and what belongs to each: what it takes, and what is made of its result. Attention follows the
#: first one
PROJECT, OUTPUT, WIDEN, NARROW, N_STEPS = range(5)

#: float32 numbers of a model
EPS, QUERY_SCALE, SCORE_CAP, N_FACTORS = range(4)

#: kinds of keys and values of a sequence: float32 (Hkv, capacity, d); rows of a table by their codes; packed like
#: weights of the products q . k, with values by rows
ROWS, CODED_ROWS, BFLOAT16_ROWS, INT8_ROWS = range(4)

#: of keys and values: their kind, how many there are, room for how many, addresses of keys and values, of float32
#: biases of scores, of factors of keys and values (Hkv, capacity) each, of positions (int32), of codes (uint16)
KIND, COUNT, CAPACITY, KEYS, VALUES, BIAS, KEY_SCALES, VALUE_SCALES, PLACES, CODES, N_SEGMENT = range(11)

#: buffers that all threads share: the residual stream (n, D), [Q | K | V], what a layer adds (n, D), inner activations
#: and their gate (n, d_ff), softmaxes (n, H (d + 2)), ones and zeros (d,), what is noted (L, n, width), logits (n, V)
X, QKV, ADDED, INNER, GATES, SOFTMAX, ONES, ZEROS, NOTES, LOGITS, N_SHARED = range(11)

#: buffers of a thread: what a product takes (n, width), the same in the type of a packed product, its factors and sums
#: (n,), or (n, width / 32) of blocks, sums of a tile, and scores of a tile of keys
TAKEN, NARROWED, FACTORS, ROW_SUMS, TILE, SCORES, N_OWN = range(7)

#: most rows of one call, most query heads to a key head, keys of a tile
MAX_ROWS, MAX_REPEAT, TILE_KEYS = 16, 64, 512
