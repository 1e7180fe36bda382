"""Is our topology loss faster than those that others have published?

Times forward + backward of `TopologyLoss` beside the topological losses of the package topolosses, on the same logits.
All take turns in one run, the second of two calls counts, and the ratios are of medians.  The peers are timed without
their base loss (alpha = 1), which favours them: ours is timed with its cross-entropy.  Needs an environment with
topolosses and what our modules need: numpy, scipy, scikit-image, torch, Pillow.

    python3 benchmarks/topology_peers.py --size 8x256 --threads 1
    python3 benchmarks/topology_peers.py --size 1x256 --batch noise --repetitions 1   # slow: dense matrices
    python3 benchmarks/topology_peers.py --size 2x128 --repetitions 2                 # a quick look
"""

import functools
import resource
import warnings
from collections.abc import Callable
from importlib.metadata import version

import torch
from batches import BATCHES, common_arguments, describe, interleaved, machine, print_table
from torch import Tensor
from torch.nn import functional as F

from losses import TopologyLoss, cross_entropy, soft_cldice_loss

OURS = "TopologyLoss (with cross-entropy)"
Loss = Callable[[Tensor, Tensor], Tensor]


def peer_losses() -> dict[str, Loss]:
    """The losses of topolosses, each without a base loss, on logits and one-hot targets."""
    warnings.filterwarnings("ignore")  # topolosses warns that alpha has no effect without a base loss
    from topolosses import losses as peers

    settings = {"softmax": True, "use_base_loss": False, "alpha": 1.0}
    return {
        "Betti matching": peers.BettiMatchingLoss(**settings),
        "TopoLoss (Hu)": peers.HutopoLoss(**settings),
        "Topograph": peers.TopographLoss(**settings),
        "warping (its value is wrong, see README)": peers.WarpingLoss(**settings),
        "clDice, 5 iterations": peers.CLDiceLoss(iter_=5, **settings),
    }


def compare(size: tuple[int, int], kind: str, repetitions: int, clock: str) -> None:
    """Time all on one batch and print ms, the ratio to ours, and the value where the prediction is perfect."""
    logits, target = BATCHES[kind](*size)
    one_hot = F.one_hot(target, 2).movedim(-1, 1).float()
    ours: dict[str, Loss] = {
        OURS: TopologyLoss(),
        "cross_entropy alone": cross_entropy,
        "soft_cldice_loss, 5 iterations": soft_cldice_loss,
    }
    losses = {name: (loss, target) for name, loss in ours.items()}
    losses |= {name: (loss, one_hot) for name, loss in peer_losses().items()}
    works = {name: functools.partial(_forward_and_backward, loss, logits, y) for name, (loss, y) in losses.items()}
    spent = interleaved(works, repetitions, clock, twice=True)
    perfect = 40 * one_hot - 20
    at_perfect = {name: loss(perfect, y).item() for name, (loss, y) in losses.items()}
    print(f"{size[0]} × {size[1]}², {kind}: {describe(logits, target)}.\n")
    rows = [[name, f"{ms:.1f}", f"{ms / spent[OURS]:.2f}", f"{at_perfect[name]:.2g}"] for name, ms in spent.items()]
    print_table(["forward + backward", "ms", "÷ ours", "value where perfect"], rows)
    print(f"Largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB.")


def _forward_and_backward(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--batch", choices=BATCHES, default="realistic")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine()}, topolosses {version('topolosses')}\n")
    compare(arguments.size, arguments.batch, arguments.repetitions, arguments.clock)


if __name__ == "__main__":
    main()
