"""Started by tests/training/test_parallel.py, alone or by torchrun: train on the CPU and save what came out."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from learner import Learner
from losses import cross_entropy
from training import parallel
from unet import UNet


class Batches:  # nine images in two batches of unequal size, in an order that depends on the epoch
    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(9, 1, 16, 16, generator=generator)
        self.target = (self.images[:, 0] > 0).long()
        self.size, self.epoch, self.batch_sampler = size, 0, self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(self.epoch))
        for chosen in (order[: self.size], order[self.size :]):
            yield self.images[chosen], self.target[chosen]


def turn(*tensors, generator):
    return [t.flip(-1) for t in tensors] if torch.rand((), generator=generator) < 0.5 else tensors


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7 + parallel.rank())  # the weights of rank 0 count
    learner = Learner(
        UNet(widths=(4, 8), norm="group"), cross_entropy, Batches(5), Batches(8),
        lr=0.02, augment=turn, folder=folder / "run", device="cpu", precision="float32",
    )  # fmt: skip
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    history = learner.fit(3)
    single = learner.evaluate([(image[None], target[None]) for image, target in zip(*next(iter(Batches(5))))])
    state = {"single": single, "weights": learner.model.state_dict(), "history": history, "start": start}
    torch.save(state, folder / f"result-{parallel.rank()}-of-{parallel.world_size()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if parallel.world_size() > 1:
        torch.distributed.destroy_process_group()
