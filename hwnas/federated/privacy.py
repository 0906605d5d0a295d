"""Differential privacy of clients: clipping that respects nested widths, noise, and its account.

What is protected is a client: whether it took part at all (`central`), or which rows it has
(`local`). Its update is clipped to a norm, and Gaussian noise hides what one update can change.

- `central` (DP-FedAvg, McMahan et al. 2018): every client takes part in a round at random and by
  itself, the server adds noise to the sum and divides by how many are to be expected, a number that
  depends on nobody's rows. It protects against those who see the models, not against the server.
- `local`: each client adds the noise itself. It protects against the server too, at the price of as
  much noise from each as the other needs for all. What one client sends in all rounds is counted.

A narrow part has fewer numbers, and is clipped to a norm in proportion to their root, so that a
number of a small device's update counts as much as one of a large device's.

Not protected: that a client exists, its tier, when it is there and how long it takes; central:
whoever sees whom the server asks gets no protection from the sampling. Noise is of floating-point
numbers, from a generator that is seeded by the system and not made for cryptography. Nothing else
that clients would say of their rows (labels, counts, losses, scores) is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hwnas.federated.aggregation import Change, Mean, clipped
from hwnas.federated.recipe import FederatedRecipe, PrivacySpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hwnas.federated.parts import Part, Tensors

_LITTLE = 0.3  # noise below which epsilons of a round are beyond ten, and their exact account huge


def epsilon(recipe: FederatedRecipe, asked: int = 0) -> float | None:
    """The epsilon at the recipe's delta of all its rounds; None without privacy.

    Args:
        asked: how often a client may have been asked, if more than once a round: a round that a
            killed server asks again is answered again, with other noise. (Central: what a killed
            server was told stays with it, which is trusted, and nobody has seen a model of it.)

    By the privacy loss distribution (`dp-accounting`), or, with so little noise that it would fill
    the memory, by the bound of Rényi orders. Central: of adding or removing a client, with the
    sampling's amplification. Local: of exchanging one client's rows, which moves its clipped update
    by up to twice the norm, with no amplification.
    """
    spec = recipe.privacy
    if spec is None:
        return None
    import dp_accounting
    from dp_accounting import pld, rdp

    noise = spec.noise if spec.kind == "central" else spec.noise / 2
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise)
    if spec.kind == "central" and recipe.clients.share < 1:
        event = dp_accounting.PoissonSampledDpEvent(recipe.clients.share, event)
    accountant: dp_accounting.PrivacyAccountant = (
        rdp.RdpAccountant() if noise < _LITTLE else pld.PLDAccountant()
    )
    accountant.compose(event, max(asked, recipe.rounds))
    return float(accountant.get_epsilon(spec.delta))


def largest_norm(spec: PrivacySpec, part: Part, whole: Part) -> float:
    """What an update of a part is clipped to."""
    return spec.clip * math.sqrt(part.numel / whole.numel)


def hidden(change: Tensors, spec: PrivacySpec, largest: float) -> Tensors:
    """A client's update, clipped and noisy, as it may leave the client.

    The noise comes from the system's source of randomness, not from the run's seed.
    """
    generator = _unforeseeable()
    deviation = spec.noise * spec.clip
    return {
        name: tensor + deviation * torch.randn(tensor.shape, generator=generator)
        for name, tensor in clipped(change, largest).items()
    }


def _unforeseeable() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()  # of the system
    return generator


class NoisySum(Mean):
    """The sum of clipped updates with noise, over how many of each coordinate are expected.

    Args:
        expected: how many updates of each part a round has in the mean.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        spec: PrivacySpec,
        expected: Mapping[Part, float],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shapes)
        self.spec = spec
        self.expected = expected
        self.generator = generator or _unforeseeable()

    def finish(self) -> Change:
        """The mean by the expected counts; of all coordinates that anybody may train."""
        from hwnas.elastic.residual import prefix

        counts: dict[str, torch.Tensor] = {}
        for part, count in self.expected.items():
            for piece in part.trained:
                if piece.name not in counts:
                    counts[piece.name] = torch.zeros(self.shapes[piece.name], dtype=torch.float64)
                prefix(counts[piece.name], torch.Size(piece.shape)).add_(count)
        deviation = self.spec.noise * self.spec.clip if self.spec.kind == "central" else 0.0
        change, trained = {}, {}
        for name in sorted(counts):
            total = self._sums.get(name)
            if total is None:
                total = torch.zeros(self.shapes[name], dtype=torch.float64)
            noise = torch.randn(total.shape, generator=self.generator, dtype=torch.float64)
            trained[name] = counts[name] > 0
            mean = (total + deviation * noise) / counts[name].clamp_min(1.0)
            change[name] = torch.where(trained[name], mean, 0.0).float()
        return Change(change, trained)
