"""How tensor parallelism cuts a decoder whose key heads are fewer than the ranks."""

from __future__ import annotations


def shares(n_heads: int, n_kv_heads: int, d_model: int, d_ff: int, d_head: int, size: int) -> list[tuple[int, int]]:
    """(key heads, columns of the MLP) of each rank, so that all have about as many weights.

    Heads cannot be cut: where there are fewer key heads than ranks, some ranks have none and more of the MLP.
    """
    heads = [n_kv_heads // size + (rank < n_kv_heads % size) for rank in range(size)]
    a_head = d_model * d_head * (2 * n_heads // n_kv_heads + 2)
    a_column = 3 * d_model
    each = (n_kv_heads * a_head + d_ff * a_column) / size
    columns = [max(0, round((each - count * a_head) / a_column)) for count in heads]
    columns[-1] += d_ff - sum(columns)
    return list(zip(heads, columns, strict=True))
