"""The program that `witness.py` starts: it hears from every rank and says which one died first.

    python -I -S witness_process.py SIZE LIMIT_S HINT

It writes "PORT TOKEN" to stdout. Each rank connects and says "TOKEN RANK PID HOST"; later b"e" when it ends in order,
b"t" when the message of this job has been given; b"r" when it begins to read under a time limit of its own, at which it
ends with a message (stuck.py), and b"d" when that is done. A connection that closes before the end is a rank that has
died. Lives as long as rank 0 at most. Small parts of the standard library only: its memory is a bare interpreter's.
"""

import math
import os
import selectors
import socket
import sys
import time
from contextlib import suppress

#: how long the ranks may take to connect, and one of them to say who it is
MEET_S, HELLO_S = 60.0, 2.0


def main() -> None:
    size, limit_s, hint = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    os.chdir("/")
    token = os.urandom(16).hex()
    server = socket.create_server(("", 0), backlog=size)
    os.write(1, f"{server.getsockname()[1]} {token}\n".encode())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with selectors.DefaultSelector() as selector:
        ranks = _meet(selector, server, size, token)
        dead = _watch(selector, ranks, limit_s) if len(ranks) == size else ""
    if dead:
        text = f"astra-mpi: error: {dead} has died: killed by a signal or for memory, or crashed; {hint}\n"
        os.write(2, text.encode())


def _meet(selector: selectors.BaseSelector, server: socket.socket, size: int, token: str) -> dict[int, str]:
    """Rank -> its name; all are in `selector` then. Fewer than `size` when one gives up or dies: nobody is named.

    Each is in `selector` before it knows that it has been heard, so that the order in which they close is kept.
    """
    ranks: dict[int, str] = {}
    end_s = time.monotonic() + MEET_S
    selector.register(server, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)  # rank 0 closes it when it gives up
    while len(ranks) < size and time.monotonic() < end_s:
        ready = [key.fileobj for key, _ in selector.select(1.0)]
        if any(who is not server for who in ready):
            break
        if ready:
            peer = server.accept()[0]
            words = _hello(peer)
            if len(words) == 4 and words[0] == token:
                rank = int(words[1])
                ranks[rank] = f"rank {rank} (process {words[2]} on {words[3]})"
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                selector.register(peer, selectors.EVENT_READ, (peer, rank))
                with suppress(OSError):  # found out again when it is read
                    peer.sendall(b"\n")
            else:
                peer.close()
    selector.unregister(0)
    selector.unregister(server)
    server.close()
    return ranks


def _hello(peer: socket.socket) -> list[str]:
    peer.settimeout(HELLO_S)
    said = b""
    try:
        while not said.endswith(b"\n") and len(said) < 1024:
            more = peer.recv(1024)
            if not more:
                break
            said += more
    except OSError:
        return []
    return said.decode(errors="replace").split()


def _watch(selector: selectors.BaseSelector, ranks: dict[int, str], limit_s: float) -> str:
    """The name of the first rank that dies; "" if the job ends otherwise."""
    reads_since_s: dict[int, float] = {}
    while True:
        for key, _ in selector.select():  # in the order in which they closed, where the system keeps it
            peer, rank = key.data
            said = b""
            with suppress(OSError):
                said = peer.recv(64)
            if not said:  # one that was at its limit has told so
                silent_s = time.monotonic() - reads_since_s.get(rank, math.inf)
                return ranks[rank] if silent_s < limit_s / 2 else ""
            if b"t" in said or (b"e" in said and rank == 0):
                return ""
            if b"e" in said:
                selector.unregister(peer)
            if said.endswith(b"r"):
                reads_since_s[rank] = time.monotonic()
            elif said.endswith(b"d"):
                reads_since_s.pop(rank, None)


if __name__ == "__main__":
    with suppress(OSError, KeyboardInterrupt):
        main()
