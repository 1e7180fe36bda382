"""One training step of the same U-Net: ours, the plain loop of a tutorial, and the nets of other packages.

Our U-Net has 16 channels and depth 4 (1.94 M parameters).  MONAI's `BasicUNet` gets the same widths and runs as its
users run it: float32, DiceCELoss, Adam.  On a GPU both packages and the plain loop also run under their own AMP.  smp's
smallest common U-Net (ResNet-18) is far wider, so read its row together with its FLOP.

All candidates take turns in one run; times are medians.  FLOP of a step: multiply-adds of `inspection.layer_table`
× 2 × 3 (forward, and twice as much backward).  The peak is that of large matrix products in bfloat16, measured here.

    peers/bin/python benchmarks/training_speed.py                       # 8 × 256², CPU or GPU
    python3 benchmarks/training_speed.py --size 2x64 --repetitions 2    # a quick look, without the peers
"""

import contextlib
import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from batches import add_device, common_arguments, interleaved, machine, milliseconds, print_table, realistic_batch
from torch import Tensor, nn

from learner import Learner
from losses import cross_entropy
from networks.inspection import count_parameters, layer_table
from unet import UNet

WIDTHS = (16, 32, 64, 128, 256)
AMP = "float16"  # automatic mixed precision as packages recommend it, with a scaler
Loss = Callable[[Tensor, Tensor], Tensor]


class Candidate:
    """One way to make a training step; calling it makes one."""

    def __init__(
        self, model: nn.Module, loss: Loss, images: Tensor, target: Tensor, precision: str, adam: Any = torch.optim.Adam
    ) -> None:
        layout = torch.channels_last if adam is torch.optim.AdamW else torch.contiguous_format  # ours: the first
        self.model = model.to(images.device, memory_format=layout).train()
        self.images, self.target = images.to(memory_format=layout), target
        self.loss, self.precision, self.optimizer = loss, precision, adam(self.model.parameters())
        self.scaler = torch.amp.GradScaler(images.device.type, enabled=precision == "float16")

    def __call__(self) -> None:
        lower = self.precision != "float32"
        dtype = getattr(torch, self.precision) if lower else None
        with torch.autocast(self.images.device.type, dtype, enabled=lower):
            logits = self.model(self.images)
        loss = self.loss(logits, self.target)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def flop(self) -> float:
        """Of one step, by formula."""
        layers = layer_table(self.model, tuple(self.images.shape))
        return 6.0 * sum(layer.multiply_adds for layer in layers)


class Fit:
    """`Learner.fit` as a student calls it: each call trains one more epoch of a few steps; scores and all included."""

    def __init__(self, images: Tensor, target: Tensor, steps: int = 4) -> None:
        torch.manual_seed(0)
        loader = [(images.cpu(), target.cpu())] * steps
        settings = {"device": images.device, "verbose": False, "schedule": "constant"}
        self.learner = Learner(UNet(1, 2, WIDTHS), cross_entropy, loader, **settings)
        self.epochs = 0

    def milliseconds(self) -> float:
        """Of one step."""
        self.epochs += 1
        row = self.learner.fit(self.epochs)[-1]
        return 1000 * row["seconds"] / len(self.learner.train_loader)


def ours_and_plain(images: Tensor, target: Tensor) -> dict[str, Candidate]:
    """Our U-Net in the number format that is fastest here, and in the loop of a tutorial."""
    torch.manual_seed(0)
    unet = UNet(1, 2, WIDTHS)
    batches = [(images.cpu(), target.cpu())]
    precision = Learner(unet, cross_entropy, batches, device=images.device).fastest_precision()
    found = {
        f"**ours**: {precision}": Candidate(unet, cross_entropy, images, target, precision, torch.optim.AdamW),
        "our net, plain loop: float32": Candidate(UNet(1, 2, WIDTHS), nn.CrossEntropyLoss(), images, target, "float32"),
    }
    if images.device.type == "cuda":
        found["our net, plain loop: AMP"] = Candidate(UNet(1, 2, WIDTHS), nn.CrossEntropyLoss(), images, target, AMP)
    return found


def peers(images: Tensor, target: Tensor) -> dict[str, Candidate]:
    """The nets of other packages that are installed."""
    warnings.filterwarnings("ignore")  # the peers speak of deprecations when they are imported
    formats = {"float32": "float32"} | ({"AMP": AMP} if images.device.type == "cuda" else {})
    found = {}
    for name, make in {"monai": monai, "segmentation_models_pytorch": smp}.items():
        try:
            for label, precision in formats.items():
                model, loss, title = make()
                found[f"{title}, {label}"] = Candidate(model, loss, images, target, precision)
        except ImportError as error:
            print(f"{name} is left out: {error}.\n")
    return found


def monai() -> tuple[nn.Module, Loss, str]:
    """The same widths; the last number is that of the top level of its decoder."""
    nets, losses = importlib.import_module("monai.networks.nets"), importlib.import_module("monai.losses")
    model = nets.BasicUNet(spatial_dims=2, in_channels=1, out_channels=2, features=(*WIDTHS, 16))
    loss = losses.DiceCELoss(to_onehot_y=True, softmax=True)
    return model, lambda z, y: loss(z, y[:, None]), f"MONAI {version('monai')} BasicUNet"


def smp() -> tuple[nn.Module, Loss, str]:
    """The smallest common encoder, without pretrained weights, since these do not change the time."""
    package = importlib.import_module("segmentation_models_pytorch")
    model = package.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)
    loss = package.losses.DiceLoss("multiclass")
    return model, loss, f"smp {package.__version__} Unet(resnet18)"


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2.0 * side**3 / min(milliseconds(lambda: a @ b) for _ in range(10)) * 1000


def main() -> None:
    parser = add_device(common_arguments(__doc__))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"{machine()}, {arguments.device}\n")
    _, target = realistic_batch(*arguments.size)
    images = torch.randn(len(target), 1, *target.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    target = target.to(device)
    candidates = ours_and_plain(images, target) | peers(images, target)
    works: dict[str, Callable[[], object]] = dict(candidates)
    fitted: list[float] = []
    with contextlib.suppress(ImportError):  # the learner also needs h5py and matplotlib
        fit = Fit(images, target)
        works["**ours**: Learner.fit, a step of an epoch"] = lambda: fitted.append(fit.milliseconds())
    spent = interleaved(works, arguments.repetitions, arguments.clock)
    if fitted:
        spent["**ours**: Learner.fit, a step of an epoch"] = sorted(fitted[1:])[len(fitted[1:]) // 2]
    fast, top = next(iter(spent.values())), peak(device, torch.bfloat16)
    rows = []
    for name, value in spent.items():
        candidate = candidates.get(name, next(iter(candidates.values())))
        flop = candidate.flop()
        rows.append(
            [name, f"{count_parameters(candidate.model) / 1e6:.2f} M", f"{value:.1f}", f"{value / fast:.2f}"]
            + [f"{flop / 1e9:.1f}", f"{100 * flop / value * 1000 / top:.0f} %"]
        )
    single = peak(device, torch.float32)
    print(f"{arguments.size[0]} × {arguments.size[1]}²; measured peak: bfloat16 {top / 1e9:.0f}", end="")
    print(f" GFLOP/s, float32 {single / 1e9:.0f} GFLOP/s\n")
    head = ["training step", "parameters", "ms", "÷ ours", "GFLOP", "of the bfloat16 peak"]
    print_table(head, rows)


if __name__ == "__main__":
    main()
