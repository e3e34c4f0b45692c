"""A measured run as `bench --json` writes it."""

CODEC = {"kind": "grouped", "groups": 1, "stages": 4, "codebook_size": 1024, "site": "hidden", "encoder": "exact"}


def one(strategy="sp", total=0.5, over=0.25, network="10Mbps,rtt=1ms", **changes):
    """A run as bench writes it."""
    coded = strategy == "astra"
    return {
        "model": "/models/vit.h5",
        "family": "vit",
        "strategy": strategy,
        "ranks": 4,
        "tokens": [1024],
        "contributed_bytes": [3, 4],
        "port_bytes": [5, 6],
        "network": network,
        "accounting": "port",
        "clock": "virtual",
        "distinct_keys": 321.0 if coded else None,
        "latency_s": {
            "total": total,
            "compute": total * 0.75,
            "exchange_wait": total / 4,
            "phases": {"mlp": total / 2, "attention": total / 4, "exchange": total / 4},
        },
        "codec": CODEC if coded else None,
        "choices": {"counted_keys": False} if coded else {},
        "spread": {"quartiles": [total, total], "over_first": over},
    } | changes
