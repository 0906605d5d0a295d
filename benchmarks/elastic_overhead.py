"""What elasticity costs: a full-width forward against the plain model, a half one against its twin.

Torch on CPU, MiniLM with its real weights, forwards of both interleaved in short bursts; a row's
figure is the median of the paired ratios. Targets: 1.03 at full width, 1.05 for half size.
"""

from __future__ import annotations

import copy
import statistics

import torch
from record import Results, options

from hwnas.elastic.supernet import SuperNetwork
from hwnas.latency.measure import time_pairs
from hwnas.models import load_model
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

THREADS = (1, 2)
SHAPES = ((1, 64), (8, 64), (32, 32))  # (batch, seq)
PROTOCOL = "torch forward, eval mode, no gradients; median ratio of interleaved pairs"


def main() -> None:
    """Measure, and write the rows and the headline."""
    args = options("elastic_overhead", __doc__)
    results = Results("elastic_overhead", args.quick, PROTOCOL, args.json)
    plain = load_model("demo:minilm", labels=["a", "b", "c"])[0].eval()
    network = SuperNetwork(copy.deepcopy(plain))
    space = SearchSpace.whole(network.shape)
    half = space.scaled(0.5)
    mixed = Subnetwork.of([[9, 512], [6, 768], [3, 1056], [6, 768], [7, 640], [5, 864]])
    twins = {
        "full": (network.full, plain),
        "half": (half, network.extract(half)),
        "half, mixed widths": (mixed, network.extract(mixed)),
    }
    repeats = 1 if args.quick else 3
    for threads in THREADS:
        torch.set_num_threads(threads)
        for batch, seq in SHAPES:
            ids = torch.randint(5, network.model.config.vocab_size, (batch, seq))
            for name, (subnetwork, dense) in twins.items():
                for repeat in range(repeats):
                    key = {
                        "what": name,
                        "threads": threads,
                        "batch": batch,
                        "seq": seq,
                        "repeat": repeat,
                    }

                    def measure(
                        subnetwork: Subnetwork = subnetwork,
                        dense: torch.nn.Module = dense,
                        ids: torch.Tensor = ids,
                    ) -> dict[str, float]:
                        network.set_subnetwork(subnetwork)
                        with torch.inference_mode():
                            paired = time_pairs(
                                lambda: network.model(input_ids=ids),
                                lambda: dense(input_ids=ids),
                                pairs=60,
                            )
                        return {"ratio": paired.ratio, "dense_ms": paired.reference_ms}

                    results.row(key, measure)
    ratios = {
        name: statistics.median(r["ratio"] for r in results.rows if r["what"] == name)
        for name in twins
    }
    results.finish(
        {
            "full_width_ratio": ratios["full"],
            "subnetwork_ratio": max(ratios["half"], ratios["half, mixed widths"]),
        }
    )


if __name__ == "__main__":
    main()
