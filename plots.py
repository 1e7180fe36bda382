"""Drawing, and nothing but drawing: every function takes arrays and axes, and returns the axes.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell apart; maps of numbers
use viridis.  Classes are drawn as contours as well as colours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from checks import IGNORE_INDEX

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
GREY = "#777777"
CLASS_COLOURS = (*PALETTE, "#999999", "#882255", "#DDDDDD")  # up to eleven classes
REGION_COLOURS = {"merge": VERMILION, "split": BLUE, "spurious": ORANGE, "missed": PURPLE, "hole": GREEN}


def use_style() -> None:
    """White background (also in a dark notebook), fonts that can be read, 110 dots an inch."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "font.size": 9,
            "legend.frameon": False,
            "image.cmap": "gray",
        }
    )


def show(path: str | Path) -> None:
    """Save the current figure (see `save`) and show exactly this file in the notebook."""
    from IPython.display import Image, display

    save(path)
    display(Image(filename=str(path)))


def save(path: str | Path) -> None:
    """Save the current figure as a PNG of 128 colours, and close it.

    The palette makes pictures of noisy images a third of their size, so that the notebook stays small.
    """
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png")
    plt.close()
    _with_palette(PIL.Image.open(buffer).convert("RGB")).save(path, optimize=True)


def grid(rows: int, columns: int, *, size: float = 1.7, title: str = "") -> np.ndarray:
    """A grid of axes for square pictures, always as a two-dimensional array."""
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.2) * rows + 0.3), squeeze=False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return axes


def square(around: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Cut the same square, as large as fits, out of all arrays (…, H, W), around the middle of a label."""
    (H, W), side = around.shape, min(around.shape)
    inside = np.argwhere((around > 0) & (around != IGNORE_INDEX))
    middle = inside.mean(axis=0) if len(inside) else (H / 2, W / 2)
    top, left = (int(np.clip(m - side / 2, 0, n - side)) for m, n in zip(middle, (H, W)))
    return [array[..., top : top + side, left : left + side] for array in arrays]


def show_image(ax: Axes, image: np.ndarray, title: str = "", **options: Any) -> Axes:
    """Draw an image, (H, W), (C, H, W) or (H, W, C), stretched to its own range; no ticks."""
    image = np.asanyarray(image)  # a masked array keeps its mask: such pixels stay white
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3:
        low, high = np.percentile(image, (0.5, 99.5))
        image = np.clip((image - low) / max(high - low, 1e-9), 0, 1).squeeze()
    elif image.dtype != bool and "vmin" not in options and "cmap" not in options:
        options["vmin"], options["vmax"] = np.percentile(image, (0.5, 99.5))
    ax.imshow(image, interpolation="nearest", **options)
    return _frame(ax, title)


def draw_contours(ax: Axes, label: np.ndarray, color: str, label_class: int = 1, width: float = 1.0) -> Axes:
    """Outline the pixels of one class exactly along their edges."""
    mask = np.kron(np.pad(np.asarray(label) == label_class, 1), np.ones((4, 4)))
    if mask.any():
        height, width_ = mask.shape
        x, y = (np.arange(width_) + 0.5) / 4 - 1.5, (np.arange(height) + 0.5) / 4 - 1.5
        ax.contour(x, y, mask, levels=[0.5], colors=[color], linewidths=width)
    return ax


def show_errors(ax: Axes, image: np.ndarray, target: np.ndarray, prediction: np.ndarray, title: str = "") -> Axes:
    """The image with the wrong pixels on it: false alarms orange, missed pixels blue, ignored pixels grey."""
    show_image(ax, image, title)
    target, prediction = np.asarray(target), np.asarray(prediction)
    counts = target != IGNORE_INDEX
    layer = np.zeros(target.shape, dtype=np.uint8)
    layer[counts & (prediction != target) & (prediction > 0)] = 1
    layer[counts & (prediction != target) & (prediction == 0)] = 2
    layer[~counts] = 3
    colours = ListedColormap(["#FFFFFF00", ORANGE, BLUE, "#BBBBBB"])
    ax.imshow(layer, cmap=colours, vmin=0, vmax=3, interpolation="nearest")
    return ax


def overlay(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The image (H, W) or (H, W, C) with its classes on it, pixel by pixel: uint8 (H, W, 3).

    Stretched to its own range as in `show_image`.  Class k = 1, 2, … has colour k of `CLASS_COLOURS`: half of it
    inside, all of it along the edge.  Class 0 and ignored pixels keep the image.
    """
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CLASS_COLOURS], np.uint8)
    H, W = label.shape
    image = np.atleast_3d(image)[..., : 3 if np.ndim(image) == 3 and image.shape[2] >= 3 else 1]
    low, high = np.percentile(image[:: max(H // 1024, 1), :: max(W // 1024, 1)], (0.5, 99.5))
    shown = np.clip((image - np.float32(low)) * np.float32(255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    shown = np.repeat(shown, 3 // shown.shape[2], axis=2)
    is_object = (label > 0) & (label != IGNORE_INDEX)
    padded = np.pad(label, 1, mode="edge")
    is_edge = np.zeros(label.shape, bool)
    for beside in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        is_edge |= beside != label
    paint = colours[label % len(colours)]
    shown[is_object] = shown[is_object] // 2 + paint[is_object] // 2
    shown[is_object & is_edge] = paint[is_object & is_edge]
    return shown


def show_classes(ax: Axes, label: np.ndarray, title: str = "", num_classes: int = 2) -> Axes:
    """A label map (H, W) in the colours of its classes, at most 11; ignored pixels are white."""
    shown = np.ma.masked_equal(np.asarray(label), IGNORE_INDEX)
    colours = ListedColormap(CLASS_COLOURS[:num_classes])
    ax.imshow(shown, cmap=colours, vmin=-0.5, vmax=num_classes - 0.5, interpolation="nearest")
    return _frame(ax, title)


def class_legend(ax: Axes, names: Sequence[str]) -> Axes:
    """Name the colours of `show_classes` below the figure that `ax` belongs to."""
    handles = [Patch(facecolor=colour, label=name) for name, colour in zip(names, CLASS_COLOURS)]
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(len(names), 6), fontsize=8)
    return ax


def error_legend(ax: Axes) -> Axes:
    """Explain the colours of `show_errors` below the figure that `ax` belongs to."""
    handles: list[Any] = [Patch(color=ORANGE, label="false alarm"), Patch(color=BLUE, label="missed")]
    handles.append(plt.Line2D([], [], color=SKY, label="outline of the label"))
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8)
    return ax


def show_regions(
    ax: Axes, image: np.ndarray, regions: Mapping[str, np.ndarray], title: str = "", **options: Any
) -> Axes:
    """The image with critical regions on it, each kind in its colour and outlined, so that one pixel can be seen.

    Args:
        regions: kind → mask (H, W), as `topology.CriticalRegions.mask` makes them.  Kinds of holes share one colour
            and lie below the others.
        options: for `show_image`.
    """
    show_image(ax, image, title, **options)
    for kind, mask in sorted(regions.items(), key=lambda entry: not entry[0].startswith("hole")):
        colour = REGION_COLOURS[kind.partition("_")[0]]
        layer = np.where(mask, 0.0, np.nan)
        ax.imshow(layer, cmap=ListedColormap([colour]), vmin=0, vmax=1, interpolation="nearest")
        draw_contours(ax, mask, colour, width=1.2)
    return ax


def region_legend(ax: Axes) -> Axes:
    """Explain the colours of `show_regions` below the figure that `ax` belongs to."""
    handles: list[Any] = [Patch(color=colour, label=kind) for kind, colour in REGION_COLOURS.items()]
    handles.append(plt.Line2D([], [], color=SKY, label="outline of the label"))
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=6, fontsize=8)
    return ax


def curves(
    axes: Sequence[Axes], histories: Mapping[str, Sequence[Mapping[str, float]]], metric: str = "mean_iou"
) -> Sequence[Axes]:
    """Loss (first axes) and a metric (second axes) over the epochs: training dashed, validation solid."""
    for ax, key in zip(axes, ("loss", metric), strict=True):
        for (name, history), colour in zip(histories.items(), cycle(PALETTE)):
            epochs = [row["epoch"] for row in history]
            for part, line in (("train", "--"), ("val", "-")):
                if history and f"{part}_{key}" in history[0]:
                    values = [row[f"{part}_{key}"] for row in history]
                    ax.plot(
                        epochs,
                        values,
                        line,
                        color=colour,
                        label=f"{name} {'training' if part == 'train' else 'validation'}",
                    )
        ax.set(xlabel="epoch", ylabel=key.replace("_", " ").replace("iou", "IoU"))
        if key == "loss":
            ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].legend(fontsize=8)
    return axes


def dots(ax: Axes, values: Mapping[str, Sequence[float]], xlabel: str) -> Axes:
    """One row a name: a dot for each seed, a bar for their mean."""
    for row, (numbers, colour) in enumerate(zip(values.values(), cycle(PALETTE))):
        ax.plot(numbers, [row] * len(numbers), "o", color=colour, alpha=0.6, markersize=5)
        ax.plot([np.mean(numbers)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    return ax


def show_pooling(
    axes: Sequence[Axes], before: np.ndarray, pooled: np.ndarray, indices: np.ndarray, restored: np.ndarray
) -> Sequence[Axes]:
    """2×2 pooling in four pictures: the map with its winners, the pooled map, repeated, and unpooled by indices.

    Args:
        before: (H, W), with H and W even, as `restored`.
        pooled: (H/2, W/2), as `indices`, which are positions in the flattened H×W plane.
    """
    scale = {"vmin": before.min(), "vmax": before.max()}
    show_image(axes[0], before, "before: winners dotted", **scale)
    axes[0].plot(indices % before.shape[1], indices // before.shape[1], ".", color=ORANGE, markersize=3)
    show_image(axes[1], pooled, "pooled", **scale)
    show_image(axes[2], np.kron(pooled, np.ones((2, 2))), "up without indices: repeated", **scale)
    show_image(axes[3], np.ma.masked_equal(restored, 0), "up by indices (white: zero)", **scale)
    return axes


def show_receptive_field(
    ax: Axes,
    image: np.ndarray,
    field: np.ndarray,
    box: Sequence[int],
    title: str = "",
    *,
    level: float = 1 - 0.9545,
) -> Axes:
    """The image with what one output pixel sees of it: the theoretical field framed, the effective one as heat.

    Args:
        field: (H, W) ≥ 0, the share of each pixel; pixels above `level` times the largest are coloured and outlined.
        box: top, left, bottom, right of the theoretical field, these pixels included; cut off at the border.
    """
    show_image(ax, image, title)
    share = np.asarray(field) / np.max(field)
    ax.imshow(share, cmap="viridis", vmin=0, vmax=1, alpha=np.sqrt(share) * (share > level), interpolation="nearest")
    draw_contours(ax, share > level, ORANGE, width=0.8)
    top, left = max(box[0], 0) - 0.5, max(box[1], 0) - 0.5
    bottom, right = min(box[2], share.shape[0] - 1) + 0.5, min(box[3], share.shape[1] - 1) + 0.5
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=VERMILION)
    frame.set(linewidth=1.5, linestyle="--")
    ax.add_patch(frame)
    return ax


def field_legend(ax: Axes) -> Axes:
    """Explain the lines of `show_receptive_field` below the figure that `ax` belongs to."""
    handles = [plt.Line2D([], [], color=VERMILION, linestyle="--", label="theoretical field")]
    handles.append(plt.Line2D([], [], color=ORANGE, label="effective field"))
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
    return ax


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str], num_classes: int
) -> np.ndarray:
    """Draw samples two in a row, each as image, label, and the outlines of its classes on the image; return the axes.

    Args:
        images: (H, W) or (H, W, C) each.
        labels: (H, W) each, in the colours of `show_classes`; ignored pixels are white.
    """
    axes = grid(-(-len(images) // 2), 6).reshape(-1, 3)
    for row, image, label, name in zip(axes, images, labels, names):
        show_image(row[0], image, name if len(name) < 20 else f"{name[:18]}…")
        show_classes(row[1], label, num_classes=min(num_classes, len(CLASS_COLOURS)))
        show_image(row[2], image)
        for number in np.unique(label[(label > 0) & (label < len(CLASS_COLOURS))]).tolist():
            draw_contours(row[2], label, CLASS_COLOURS[number], number)
    for ax in axes[len(images) :].flat:
        ax.axis("off")
    return axes


def draw_unet(
    stages: Sequence[Any],
    *,
    input_channels: int = 1,
    num_classes: int = 2,
    skip: str = "concat",
    upsampling: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw the U from the maps of its blocks: height = size of the map, width ~ channels, numbers as measured.

    Args:
        stages: `inspection.stages`: encoder from the top down, then decoder from the bottom up.
    """
    depth = (len(stages) - 1) // 2
    if ax is None:
        _, ax = plt.subplots(figsize=(9, 1.0 + 0.95 * (depth + 1)))
    boxes = []  # left, bottom, width, height
    for index, stage in enumerate(stages):
        level = min(index, 2 * depth - index)
        width, height = 0.12 * np.log2(stage.channels + 1), 0.72 * 0.8**level
        x, y = 1.25 * index, -float(level)
        colour = SKY if index <= depth else ORANGE
        ax.add_patch(Rectangle((x - width / 2, y), width, height, facecolor=colour, edgecolor=BLACK, linewidth=0.8))
        ax.text(x, y + height + 0.03, f"{stage.channels}", ha="center", va="bottom", fontsize=8, fontweight="bold")
        ax.text(x, y - 0.03, f"{stage.height}×{stage.width}", ha="center", va="top", fontsize=7)
        boxes.append((x, y, width, height))
    for index, ((x0, y0, w0, h0), (x1, y1, w1, h1)) in enumerate(zip(boxes, boxes[1:])):
        start, end = (x0 + w0 / 2, y0 + h0 / 2), (x1 - w1 / 2, y1 + h1 / 2)
        _arrow(ax, start, end, VERMILION if index < depth else GREEN, "-")
    if skip != "none" or upsampling == "unpool":
        for left, right in zip(boxes[:depth], boxes[:depth:-1]):
            middle = left[1] + left[3] / 2
            start, end = (left[0] + left[2] / 2, middle), (right[0] - right[2] / 2, middle)
            _arrow(ax, start, end, GREY, "-" if skip != "none" else "--")
    x, y, w, h = boxes[0]
    ax.text(
        x - w / 2 - 0.12,
        y + h / 2,
        f"image\n{input_channels} channel{'s' * (input_channels > 1)}",
        ha="right",
        va="center",
        fontsize=8,
    )
    x, y, w, h = boxes[-1]
    ax.text(x + w / 2 + 0.12, y + h / 2, f"1×1 →\n{num_classes} logits", ha="left", va="center", fontsize=8)
    links = {"concat": "skip: concatenation", "sum": "short-cut: sum"}.get(skip)
    if upsampling == "unpool":
        links = f"{links} + pooling indices" if links else "pooling indices (dashed)"
    handles = [
        Patch(color=SKY, label="encoder block: two 3×3 convolutions"),
        Patch(color=ORANGE, label="decoder block: the same"),
        plt.Line2D([], [], color=VERMILION, label="2×2 max pooling"),
        plt.Line2D([], [], color=GREEN, label=f"up ×2: {upsampling}" if upsampling else "up ×2"),
    ]
    if links:
        handles.append(plt.Line2D([], [], color=GREY, label=links))
    ax.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, -0.16))
    ax.set_xlim(-1.4, boxes[-1][0] + 1.4)
    ax.set_ylim(-depth - 0.45, 1.1)
    ax.axis("off")
    return ax


def _with_palette(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in 128 colours, the ones of this module among them exactly."""
    ours = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (*CLASS_COLOURS, "#FFFFFF")]
    found = picture.quantize(128 - len(ours)).getpalette() or []
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette([*np.ravel(ours).tolist(), *found][: 3 * 128])
    result = picture.quantize(palette=palette, dither=PIL.Image.Dither.NONE)
    index, pixels = np.array(result), np.asarray(picture)
    for number, colour in enumerate(ours):  # the search for the nearest colour is not exact: white came out greyish
        index[(pixels == colour).all(axis=-1)] = number
    result.putdata(index.ravel().tolist())
    return result


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            color=colour,
            linestyle=style,
            shrinkA=2,
            shrinkB=2,
        )
    )


def _frame(ax: Axes, title: str) -> Axes:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)
    if title:
        ax.set_title(title, fontsize=9)
    return ax
