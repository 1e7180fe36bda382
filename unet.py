"""U-Net with two independent choices: how the decoder comes back up, and what the encoder hands across.

Ronneberger, Fischer and Brox, 2015 (arXiv:1505.04597) join both sides by *skip* links: the feature map of the
encoder is put beside the one of the decoder.  SegNet (arXiv:1511.00561) joins them by *index* links instead: max
pooling remembers which of the four pixels won, and unpooling puts the value back there.  Here they are two arguments:

    upsampling = "transposed" | "bilinear" | "unpool" (index links)
    skip       = "none" | "concat" (U-Net) | "sum" (short-cut, as in ResNet and FCN)

Convolutions are padded, pooling rounds up, and the decoder cuts its map back to the size that the encoder had.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checks import InputError

Upsampling = Literal["transposed", "bilinear", "unpool"]
Skip = Literal["none", "concat", "sum"]
Norm = Literal["batch", "instance", "group", "none"]


def unpool2x2(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    """Put each value back where 2×2 max pooling found it, 0 elsewhere: (B, C, ⌈H/2⌉, ⌈W/2⌉) → (B, C, H, W).

    Equal to `nn.MaxUnpool2d(2)` with `output_size=size`, bit for bit in value and gradient, but it also runs under
    `torch.use_deterministic_algorithms(True)`, where PyTorch's version raises.  `indices` as
    `F.max_pool2d(..., 2, ceil_mode=True, return_indices=True)` gives them; `size` is (H, W) of the map before pooling.

    >>> values, indices = F.max_pool2d(torch.tensor([[[[1., 2.], [4., 3.]]]]), 2, return_indices=True)
    >>> unpool2x2(values, indices, (2, 2)).tolist()
    [[[[0.0, 0.0], [4.0, 0.0]]]]
    """
    B, C, h, w = x.shape
    H, W = size
    rows = torch.arange(2 * h, device=x.device).view(1, 1, h, 2, 1, 1)
    columns = torch.arange(2 * w, device=x.device).view(1, 1, 1, 1, w, 2)
    is_winner = indices[:, :, :, None, :, None] == rows * W + columns  # (B, C, h, 2, w, 2)
    is_winner = is_winner.reshape(B, C, 2 * h, 2 * w)
    repeated = F.interpolate(x, scale_factor=2, mode="nearest")  # (B, C, 2h, 2w)
    return torch.where(is_winner, repeated, 0)[..., :H, :W]


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Squares of f² pixels become one, the last row or column repeated: (B, C, H, W) → (B, C·f², ⌈H/f⌉, ⌈W/f⌉)."""
    height, width = x.shape[2:]
    return F.pixel_unshuffle(F.pad(x, (0, -width % factor, 0, -height % factor), mode="replicate"), factor)


class ConvBlock(nn.Sequential):
    """Two times (3×3 convolution, normalisation, ReLU): (B, in, H, W) → (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = "batch"):
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            bias = norm not in ("batch", "instance")  # these subtract the channel's mean, so it could learn nothing
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(out_channels))
            elif norm == "instance":
                layers.append(nn.InstanceNorm2d(out_channels, affine=True))
            elif norm == "group":
                groups = math.gcd(8, out_channels)
                # A group of one channel has one value on a 1×1 map, and no spread.
                layers.append(nn.GroupNorm(groups // 2 if 1 < groups == out_channels else groups, out_channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Up(nn.Module):
    """One step up the decoder: (B, in, ⌈H/2⌉, ⌈W/2⌉) → (B, out, H, W).

    A 1×1 convolution commutes with bilinear interpolation, so it comes first, on a quarter of the pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, upsampling: Upsampling):
        super().__init__()
        layers: list[nn.Module] = []
        if upsampling == "transposed":
            layers.append(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2))
        elif in_channels != out_channels:
            layers.append(nn.Conv2d(in_channels, out_channels, 1))
        if upsampling == "bilinear":
            # By the factor, not to a size: else the map of an odd-sized image would be stretched.
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        self.rise = nn.Sequential(*layers)

    def forward(self, x: Tensor, size: tuple[int, int], indices: Tensor | None) -> Tensor:
        x = self.rise(x)
        return x[..., : size[0], : size[1]] if indices is None else unpool2x2(x, indices, size)


class UNet(nn.Module):
    """U-Net: images (B, in_channels, H, W) → logits (B, num_classes, H, W), for every H, W ≥ 1.

    Args:
        num_classes: number of output channels; two classes may use 2 (softmax) or 1 (sigmoid).
        widths: channels per level, from the top down; its length − 1 is the depth (number of poolings).
        upsampling: "transposed" convolution, "bilinear" interpolation, or "unpool" by the pooling indices.
        skip: "concat" as in the paper, "sum" (short-cut), or "none".
        norm: "batch", "group" or "instance" (they need no other images; the latter needs 2 pixels at the bottom), or
            "none" as in the paper.
        dropout: probability at the bottom of the U, where the paper places it.
        keep_channels: the up-convolution keeps its number of channels instead of going down to that of its level.
        stem: squares of so many pixels a side (1, 2, 4, 8) are one pixel for the net; 2 takes a third of the time.
    >>> UNet(1, 2, widths=(4, 8))(torch.zeros(1, 1, 17, 31)).shape
    torch.Size([1, 2, 17, 31])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        *,
        upsampling: Upsampling = "transposed",
        skip: Skip = "concat",
        norm: Norm = "batch",
        dropout: float = 0.0,
        keep_channels: bool = False,
        stem: int = 1,
    ):
        super().__init__()
        choices = {"upsampling": (upsampling, get_args(Upsampling)), "skip": (skip, get_args(Skip))}
        others = {"norm": (norm, get_args(Norm)), "stem": (stem, (1, 2, 4, 8))}  # tiles of an image fit onto these
        check_settings("UNet", in_channels, num_classes, widths, **choices, **others)
        if keep_channels and (upsampling == "unpool" or skip == "sum"):
            raise InputError("UNet: unpooling and summation need the encoder's channels; use keep_channels=False.")
        self.in_channels, self.num_classes, self.widths = in_channels, num_classes, tuple(widths)
        self.upsampling, self.skip, self.stem = upsampling, skip, stem

        self.encoder = nn.ModuleList()
        for channels, width in zip((in_channels * stem**2, *widths), widths, strict=False):
            self.encoder.append(ConvBlock(channels, width, norm))
        self.pool = nn.MaxPool2d(2, ceil_mode=True, return_indices=upsampling == "unpool")
        self.dropout = nn.Dropout(dropout)
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):  # from the bottom up
            risen = below if keep_channels else width
            self.ups.append(Up(below, risen, upsampling))
            self.decoder.append(ConvBlock(risen + width if skip == "concat" else risen, width, norm))
        self.head = nn.Conv2d(widths[0], num_classes * stem**2, 1)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        check_input("UNet", x, self.in_channels)
        (height, width), handed_across = x.shape[2:], []
        x = space_to_depth(x, self.stem) if self.stem > 1 else x  # from here on H, W of the highest level
        for block in self.encoder[:-1]:
            features = block(x)  # (B, width, H, W)
            pooled = self.pool(features)  # (B, width, ⌈H/2⌉, ⌈W/2⌉)
            x, indices = pooled if self.upsampling == "unpool" else (pooled, None)
            handed_across.append((features, indices))
        x = self.dropout(self.encoder[-1](x))
        for up, block in zip(self.ups, self.decoder, strict=True):
            features, indices = handed_across.pop()
            x = up(x, features.shape[-2:], indices)  # (B, risen, H, W)
            if self.skip == "concat":
                x = torch.cat([features, x], dim=1)  # (B, width + risen, H, W)
            elif self.skip == "sum":
                x = x + features
            x = block(x)  # (B, width, H, W)
        x = self.head(x)  # (B, num_classes · stem², H, W)
        return F.pixel_shuffle(x, self.stem)[..., :height, :width] if self.stem > 1 else x


def check_settings(
    model: str, in_channels: int, num_classes: int, widths: Sequence[int], **choices: tuple[object, tuple[object, ...]]
) -> None:
    """Raise `InputError` unless all numbers of channels are at least 1, and argument=(value, allowed values) fits."""
    if min(in_channels, num_classes, *widths, len(widths)) < 1:
        numbers = f"in_channels={in_channels}, num_classes={num_classes}, widths={tuple(widths)}"
        raise InputError(f"{model}: {numbers}; all must be at least 1, and there must be at least one level.")
    for argument, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{model}: {argument}={value!r}; choose one of {', '.join(map(repr, allowed))}.")


def check_input(model: str, x: Tensor, in_channels: int) -> None:
    """Raise `InputError` unless x is (B, in_channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        hint = "One image needs a batch axis, image[None]; channels that come last, images.permute(0, 3, 1, 2)."
        raise InputError(f"{model}: input has shape {tuple(x.shape)}; expected (B, {in_channels}, H, W). {hint}")


def initialise(module: nn.Module) -> None:
    """He's initialisation (arXiv:1502.01852), as the U-Net paper asks for: each layer keeps the variance."""
    if isinstance(module, nn.ConvTranspose2d):  # with kernel = stride a pixel sees one tap a channel; no ReLU follows
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    elif isinstance(module, nn.Conv2d):  # in these nets a ReLU follows every convolution but the 1×1 ones
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module.kernel_size == (1, 1) else "relu")
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
