"""Scalar codes under training: levels, directions back, offset and the entries of the first codes have gradients.

The directions along which vectors are searched stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from astra_mpi.codec.codebook import Codebook, Transform
from astra_mpi.train.codes.quantiser import Quantiser, Use
from astra_mpi.train.noise import Noise


class Scalars:
    """One codebook of a kind with a transform (`codec.kinds.scalar`)."""

    def __init__(self, book: Codebook, learns: bool, device: torch.device | str = "cpu") -> None:
        assert book.transform is not None
        self.made, self.width = book, book.width
        forward, back, offset = (torch.tensor(array, device=device) for array in book.transform)
        self.forward, self.back, self.offset = forward, back.requires_grad_(learns), offset.requires_grad_(learns)
        self.entries = torch.tensor(book.entries, device=device, requires_grad=learns)  # (C, K, 1)
        last = (1 << torch.as_tensor(book.code_bits[-len(book.entries) :])) - 1
        self.last = last.to(device)  # (C,): the last level of each direction, which is repeated behind
        self.head = None if book.head is None else Quantiser(book.head, learns, device)
        self.noise = Noise(book.width, device)

    @property
    def n_codes(self) -> int:
        return len(self.entries) + (self.head.n_codes if self.head else 0)

    @property
    def learned(self) -> dict[str, Tensor]:
        """What has gradients, by name."""
        own = {"entries": self.entries, "back": self.back, "offset": self.offset}
        own |= {"head": self.head.entries} if self.head else {}
        return own if self.entries.requires_grad else {}

    def codes(self, x: Tensor, near: Tensor | None = None) -> Tensor:
        """x (n, D) -> (n, C): the nearest entries of the head, then levels, the lower one on a tie."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x, parts = x.float(), []
            if self.head is not None:
                parts.append(self.head.codes(x))
                x = x - self.head.decode(parts[0])
            z = (x - self.offset) @ self.forward
            levels = self.entries[:, :, 0]
            middles = ((levels[:, :-1] + levels[:, 1:]) / 2).contiguous()
            own = torch.searchsorted(middles, z.T.contiguous()).minimum(self.last[:, None])
            return torch.cat([*parts, own.T], dim=1)

    def encode(self, x: Tensor, given: Tensor | None = None, near: Tensor | None = None) -> Use:
        """x (n, D) -> its codes, or the `given` ones (n, C), and what they leave."""
        codes = self.codes(x) if given is None else given
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return Use(codes, [], x.float() - self.decode(codes))

    def decode(self, codes: Tensor) -> Tensor:
        """x^ (n, D) of codes (n, C), with gradients."""
        first = self.head.n_codes if self.head else 0
        z = self.entries[:, :, 0].T.gather(0, codes[:, first:])  # (n, C)
        x = z @ self.back + self.offset
        return x if self.head is None else x + self.head.decode(codes[:, :first])

    @torch.no_grad()
    def settle(self) -> None:
        """After a step of an optimiser: levels are in order, and the last of each direction is repeated."""
        levels = self.entries[:, :, 0].cummax(dim=1).values
        places = torch.arange(levels.shape[1], device=levels.device).minimum(self.last[:, None])
        self.entries[:, :, 0] = levels.gather(1, places)

    @property
    def book(self) -> Codebook:
        """As the engine reads it."""
        transform = Transform(*(t.detach().cpu().numpy() for t in (self.forward, self.back, self.offset)))
        head = None if self.head is None else self.head.book
        return replace(self.made, entries=self.entries.detach().cpu().numpy(), transform=transform, head=head)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        own = {"entries": self.entries.data, "back": self.back.data, "offset": self.offset.data}
        return own | ({"head": self.head.entries.data} if self.head else {}) | self.noise.state()
