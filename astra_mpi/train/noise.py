"""The noise of noise-augmented quantisation: xi ~ N(mu, Sigma), the running moments of the residual x - x^."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: added to the diagonal of Sigma, relative to its mean, so that it has a Cholesky factor
RIDGE = 1e-4


class Noise:
    """Moments of one codebook's residual, the same on all ranks; no noise before the first batch is known."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.mean = torch.zeros(width, device=device)
        self.second = torch.zeros(width, width, device=device)  # mean of r r^T
        self.known = torch.zeros(1, device=device)
        self._factor: Tensor | None = None

    def update(self, mean: Tensor, second: Tensor, decay: float) -> None:
        """Move towards a joint batch's mean (W,) and second moment (W, W)."""
        keep = decay * float(self.known)
        self.mean.mul_(keep).add_(mean, alpha=1 - keep)
        self.second.mul_(keep).add_(second, alpha=1 - keep)
        self.known.fill_(1)
        self._factor = None

    def draw(self, seeds: np.ndarray, lengths: Sequence[int]) -> Tensor:
        """(n, W): lengths[s] rows from seeds[s], sequence after sequence, whatever rank holds a sequence."""
        width, device = len(self.mean), self.mean.device
        if not float(self.known):
            return torch.zeros(sum(lengths), width, device=device)
        generator = torch.Generator()
        parts = [
            torch.randn(n, width, generator=generator.manual_seed(int(s))) for s, n in zip(seeds, lengths, strict=True)
        ]
        drawn = torch.cat([torch.zeros(0, width), *parts])  # a rank may hold no sequence of a small batch
        return self.mean + drawn.to(device) @ self.factor.T

    @property
    def factor(self) -> Tensor:
        """Lower triangular (W, W) with factor factor^T = Sigma."""
        if self._factor is None:
            covariance = (self.second - self.mean[:, None] * self.mean[None, :]).double()
            diagonal = covariance.diagonal()
            diagonal += RIDGE * diagonal.mean().clamp(min=0) + 1e-12
            self._factor = torch.linalg.cholesky_ex(covariance).L.float()
        return self._factor

    def state(self) -> dict[str, Tensor]:
        return {"noise_mean": self.mean, "noise_second": self.second, "noise_known": self.known}
