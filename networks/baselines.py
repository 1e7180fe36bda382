"""The networks that a U-Net is compared with: the simple road net, a dilated net, a classifier of images.

All but the last map images (B, C, H, W) to logits (B, K, H, W) for every H, W ≥ 1, as the U-Net does: convolutions are
padded, pooling rounds up, and the map is cut back to the image at its far end.

Sources: Yu and Koltun, 2016 (arXiv:1511.07122), and Chen et al., 2017 (arXiv:1606.00915), dilation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from checks import InputError
from networks.fcn import conv_stage
from unet import UNet, check_input, check_settings, initialise

WIDTHS = (16, 32, 64, 64, 64)


class RoadNet(nn.Module):
    """The simple model of the road assignment: two 5×5 convolutions of stride 2, 1×1, resized; no normalisation.

    Parameters: 25·C·32 + 32, 25·32·64 + 64, 64·K + K.  The assignment's sigmoid belongs to the loss here.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1):
        super().__init__()
        check_settings("RoadNet", in_channels, num_classes, (32, 64))
        self.in_channels, self.num_classes = in_channels, num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 32, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, num_classes, 1),
            # By the factor and not to the size of the image: else the map of an odd-sized image would be stretched.
            nn.Upsample(scale_factor=4, mode="bilinear"),
        )
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        check_input("RoadNet", x, self.in_channels)
        return self.layers(x)[..., : x.shape[2], : x.shape[3]]


class DilatedNet(nn.Module):
    """The backbone with its last poolings replaced by dilation: images (B, C, H, W) → logits (B, K, H, W).

    Without a pooling the map stays twice as fine, and a convolution after it must reach twice as far to see the same
    pixels: taps 2, then 4 pixels apart.  The parameters stay what they were; the multiply-adds after it are fourfold.
    `output_stride`: 8 or 4 (also 16, 2, 1) pixels for one value of the map before the bilinear upsampling.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, widths: Sequence[int] = WIDTHS, *, output_stride: int = 8
    ):
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


class Shrunk(nn.Module):
    """A network that looks at an image of a lower resolution, and gives its logits in the full one.

    Averages of factor×factor pixels go in, logits are interpolated: 1/factor² of the cost, and a receptive field factor
    times as wide.  The factor is 1, 2, 4 or 8, so that tiles of a large image fit onto its grid.

    >>> import torch
    >>> Shrunk(UNet(3, 2, (4, 8)), 2)(torch.zeros(1, 3, 17, 31)).shape
    torch.Size([1, 2, 17, 31])
    """

    def __init__(self, network: UNet, factor: int = 2):
        super().__init__()
        check_settings("Shrunk", 1, 1, (1,), factor=(factor, (1, 2, 4, 8)))
        self.down = nn.AvgPool2d(factor, ceil_mode=True)
        self.network = network
        self.up = nn.Upsample(scale_factor=factor, mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        check_input("Shrunk", x, self.network.in_channels)
        return self.up(self.network(self.down(x)))[..., : x.shape[2], : x.shape[3]]


class ImageClassifier(nn.Module):
    """One class for the whole image: a U-Net's encoder, mean over the map, dense layer; (B, C, H, W) → (B, K).

    >>> import torch
    >>> ImageClassifier(UNet(3, 2, (4, 8)), num_classes=5)(torch.zeros(2, 3, 17, 31)).shape
    torch.Size([2, 5])
    """

    def __init__(self, unet: UNet, num_classes: int):
        super().__init__()
        self.in_channels, self.num_classes = unet.in_channels, num_classes
        self.encoder = copy.deepcopy(unet.encoder)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(unet.widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        check_input("ImageClassifier", x, self.in_channels)
        for block in self.encoder[:-1]:
            x = self.pool(block(x))
        return self.head(self.encoder[-1](x))


def fcn_resnet50(in_channels: int = 3, num_classes: int = 2) -> nn.Module:
    """Torchvision's FCN on a ResNet-50, with random weights: (B, in_channels, H, W) → logits (B, num_classes, H, W)."""
    try:
        from torchvision.models import segmentation
    except (ImportError, RuntimeError, OSError) as error:  # a pair that does not fit raises RuntimeError
        reason = str(error).splitlines()[0]
        raise InputError(f"fcn_resnet50: torchvision cannot be imported ({reason}); leave it out.") from error
    net = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=num_classes)
    if in_channels != 3:
        net.backbone.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    net.register_forward_hook(lambda module, inputs, outputs: outputs["out"])  # of a dict of outputs, the logits
    return net
