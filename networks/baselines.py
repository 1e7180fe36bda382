"""The networks that a U-Net is compared with: the road net, a dilated net, FCN-32s, 16s, 8s, and classifiers.

Those that segment map images (B, C, H, W) to logits (B, K, H, W) for every H, W ≥ 1, as the U-Net does.  An FCN is a
classifier of patches that reads a whole image.  A dense layer on a k×k map is a k×k convolution that has one place to
be; on a larger image it has many, and answers once for each.  Upsampling makes of these one answer for each pixel.
Sources: Long, Shelhamer and Darrell, 2015 (arXiv:1411.4038), FCN;  Simonyan and Zisserman, 2015 (arXiv:1409.1556), VGG;
Yu and Koltun, 2016 (arXiv:1511.07122), and Chen et al., 2017 (arXiv:1606.00915), dilation.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from checks import InputError
from networks.upsampling import bilinear_upsampling
from unet import UNet, check_input, check_settings, initialise, space_to_depth

FCN_WIDTHS = (16, 32, 64, 128, 128)
LEVELS = 5  # poolings in the backbone: its map has one value for 2⁵ = 32 pixels
Upsampling = Literal["transposed", "bilinear"]
SKIPS = {32: (), 16: (3,), 8: (3, 2)}  # FCN-16s and 8s add the scores of these levels: of strides 16 and 8


def conv_stage(in_channels: int, out_channels: int, *, padding: int = 1, dilation: int = 1) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=padding * dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class RoadNet(nn.Module):
    """The simple model of the road assignment, without its sigmoid, which belongs to the loss here."""

    def __init__(self, in_channels: int = 3, num_classes: int = 1):
        super().__init__()
        check_settings("RoadNet", in_channels, num_classes, (32, 64))
        self.in_channels, self.num_classes = in_channels, num_classes
        first, second = nn.Conv2d(in_channels, 32, 5, 2, padding=2), nn.Conv2d(32, 64, 5, 2, padding=2)
        last = nn.Conv2d(64, num_classes, 1), nn.Upsample(scale_factor=4, mode="bilinear")
        self.layers = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), *last)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        check_input("RoadNet", x, self.in_channels)
        return self.layers(x)[..., : x.shape[2], : x.shape[3]]


class DilatedNet(nn.Module):
    """The backbone with its last poolings replaced by dilation.

    Without a pooling the map stays twice as fine, and the convolutions after it must reach twice as far: taps 2, then 4
    pixels apart.  The parameters stay what they were; the multiply-adds are fourfold.
    `output_stride` (16, 8, 4, 2, 1): pixels for one value of the map before the bilinear upsampling.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, widths: Sequence[int] = (16, 32, 64, 64, 64), *,
        output_stride: int = 8,
    ):  # fmt: skip
        super().__init__()
        strides = tuple(2**level for level in range(len(widths)))
        check_settings("DilatedNet", in_channels, num_classes, widths, output_stride=(output_stride, strides))
        self.in_channels, self.num_classes = in_channels, num_classes
        layers: list[nn.Module] = []
        for level, (before, width) in enumerate(zip((in_channels, *widths), (*widths, widths[-1]))):
            layers.append(conv_stage(before, width, dilation=max(1, 2**level // output_stride)))
            if 2**level < output_stride:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers += [nn.Conv2d(widths[-1], num_classes, 1), nn.Upsample(scale_factor=output_stride, mode="bilinear")]
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        check_input("DilatedNet", x, self.in_channels)
        return self.layers(x)[..., : x.shape[2], : x.shape[3]]


class PatchClassifier(nn.Module):
    """A small VGG that names the class of a patch: (B, in_channels, patch, patch) → (B, num_classes).

    Five times (3×3 convolution *without padding*, BatchNorm, ReLU, 2×2 max pooling), which needs 94 pixels for one
    value and 32 more for the next; then two dense layers on the k×k map, k = (patch − 62) / 32; patch: 94, 126, 158, …
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, widths: Sequence[int] = FCN_WIDTHS, *, patch: int = 126
    ):
        super().__init__()
        kernel = _check_backbone("PatchClassifier", in_channels, num_classes, widths, patch)
        self.in_channels, self.num_classes, self.widths, self.patch = in_channels, num_classes, tuple(widths), patch
        self.stages = nn.ModuleList(conv_stage(a, b, padding=0) for a, b in zip((in_channels, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        hidden = nn.Linear(widths[-1] * kernel**2, widths[-1])
        self.dense = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(inplace=True), nn.Linear(widths[-1], num_classes))
        self.apply(initialise)
        nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        check_input("PatchClassifier", x, self.in_channels)
        if x.shape[2:] != (self.patch, self.patch):
            raise InputError(f"PatchClassifier: {tuple(x.shape[2:])}, not {self.patch}²: use FCN.from_classifier.")
        for stage in self.stages:
            x = self.pool(stage(x))
        return self.dense(x)  # (B, K)


class FCN(nn.Module):
    """FCN-32s, 16s, 8s, by their `stride`.

    Backbone and dense layers of `PatchClassifier`, the latter as convolutions, give a coarse map of one value for 32
    pixels.  FCN-32s brings it up at once.  FCN-16s goes up by 2, adds scores of the map of stride 16 (a *short-cut*:
    1×1 convolution and sum), then up by 16; FCN-8s does so once more.  Scores start at 0, so that a new short-cut
    changes nothing yet.  `upsampling` by "transposed" convolution starts as bilinear interpolation; "bilinear" is the
    same, not trained.  `patch` is the side of the window of one value of the coarse map, as in `PatchClassifier`.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, widths: Sequence[int] = FCN_WIDTHS, *,
        stride: int = 8, upsampling: Upsampling = "transposed", patch: int = 126,
    ):  # fmt: skip
        super().__init__()
        choices = {"stride": (stride, tuple(SKIPS)), "upsampling": (upsampling, get_args(Upsampling))}
        kernel = _check_backbone("FCN", in_channels, num_classes, widths, patch, **choices)
        self.in_channels, self.num_classes, self.stride, self.patch = in_channels, num_classes, stride, patch
        self.stages = nn.ModuleList(conv_stage(a, b) for a, b in zip((in_channels, *widths), widths))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        dense = nn.Conv2d(widths[-1], widths[-1], kernel, padding=kernel // 2)
        self.head = nn.Sequential(dense, nn.ReLU(inplace=True), nn.Conv2d(widths[-1], num_classes, 1))
        self.scores = nn.ModuleList(nn.Conv2d(widths[level], num_classes, 1) for level in SKIPS[stride])
        self.apply(initialise)
        for parameter in self.scores.parameters():
            nn.init.zeros_(parameter)
        self.ups = nn.ModuleList()
        for factor in (*(2 for _ in self.scores), stride):
            # An even kernel has its middle between two pixels: the map begins half a step before the image.
            early = factor // 2 if not self.ups and kernel % 2 == 0 else 0
            up = bilinear_upsampling(num_classes, factor, padding=factor // 2 + factor + early)  # for a repeated frame
            self.ups.append(up.requires_grad_(upsampling == "transposed"))

    @classmethod
    @torch.no_grad()
    def from_classifier(cls, of: PatchClassifier, stride: int = 32, upsampling: Upsampling = "transposed") -> "FCN":
        """The FCN with a copy of the weights of a classifier; its dense layers become convolutions."""
        net = cls(of.in_channels, of.num_classes, of.widths, stride=stride, upsampling=upsampling, patch=of.patch)
        net.to(next(of.parameters()))  # its device and dtype
        net.stages.load_state_dict(of.stages.state_dict())
        for convolution, dense in zip(net.head.parameters(), of.dense.parameters()):
            convolution.copy_(dense.reshape(convolution.shape))  # (out, C, k, k)
        return net

    def forward(self, x: Tensor) -> Tensor:
        check_input("FCN", x, self.in_channels)
        maps = self._pooled(x)
        z = self.head(maps[-1])  # (B, K, ⌈H/32⌉, ⌈W/32⌉), one more each with an even kernel
        for up, score, level in zip(self.ups, self.scores, SKIPS[self.stride]):
            added = score(maps[level])
            z = _rise(up, z)[..., : added.shape[2], : added.shape[3]] + added
        return _rise(self.ups[-1], z)[..., : x.shape[2], : x.shape[3]]

    def coarse_map(self, x: Tensor) -> Tensor:
        """The classifier's answer, in test mode, for the patches of x (B, C, H, W) whose corners are at [32·i, 32·j].

        (B, K, ⌊(H − patch)/32⌋ + 1, ⌊(W − patch)/32⌋ + 1); `InputError` if the image is smaller than one patch.
        """
        check_input("FCN", x, self.in_channels)
        if min(x.shape[2:]) < self.patch:
            raise InputError(f"FCN.coarse_map: an image of {tuple(x.shape[2:])} pixels; expected ≥ {self.patch}.")
        # One row and column of zeros bring the windows to the corner; all that see padding are cut off again.
        z = self.head(self._pooled(nn.functional.pad(x, (1, 0, 1, 0)))[-1])
        first = (self.patch - 62) // 64 + 1  # the padding k // 2 of the dense layer, and this row
        rows, columns = ((side - self.patch) // 2**LEVELS + 1 for side in x.shape[2:])
        return z[..., first : first + rows, first : first + columns]

    def _pooled(self, x: Tensor) -> list[Tensor]:
        """The maps after each pooling, of strides 2, 4, 8, 16, 32."""
        return [x := self.pool(stage(x)) for stage in self.stages]


def _rise(up: nn.Module, z: Tensor) -> Tensor:
    """Upsampling with the frame repeated, else the logits would fade there; float32, as CPUs are slow in bfloat16."""
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(next(up.parameters()).dtype)
        return up(nn.functional.pad(z, (1, 1, 1, 1), mode="replicate"))


def _check_backbone(
    model: str, in_channels: int, num_classes: int, widths: Sequence[int], patch: int, **choices: Any
) -> int:
    """Check the settings of classifier and FCN; returns the side k of the map that the dense layer meets."""
    check_settings(model, in_channels, num_classes, widths, **choices)
    kernel, rest = divmod(patch - 62, 2**LEVELS)
    if len(widths) != LEVELS or kernel < 1 or rest:
        raise InputError(f"{model}: widths={tuple(widths)}, patch={patch}; expected five, and 94, 126, 158, …")
    return kernel


class ImageClassifier(nn.Module):
    """One class for the whole image: a U-Net's encoder, mean over the map, dense layer; (B, C, H, W) → (B, K)."""

    def __init__(self, unet: UNet, num_classes: int):
        super().__init__()
        self.in_channels, self.num_classes, self.stem = unet.in_channels, num_classes, unet.stem
        self.encoder, self.pool = copy.deepcopy(unet.encoder), nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(unet.widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        check_input("ImageClassifier", x, self.in_channels)
        x = space_to_depth(x, self.stem) if self.stem > 1 else x
        for block in self.encoder[:-1]:
            x = self.pool(block(x))
        return self.head(self.encoder[-1](x))
