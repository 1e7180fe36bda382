"""Drawing, and nothing but drawing: every function takes arrays and axes, and returns the axes.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which colour-blind readers can tell apart.
"""

import inspect
import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.patches import Patch

from checks import IGNORE_INDEX, printable

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#777777"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
ERROR_COLOURS = {"false alarm": ORANGE, "missed": BLUE}
CLASS_COLOURS = (*PALETTE, "#999999", "#882255", "#DDDDDD")  # up to eleven classes
REGION_COLOURS = {"merge": VERMILION, "split": BLUE, "spurious": ORANGE, "missed": PURPLE, "hole": GREEN}
LABEL_LINE = {"outline of the label": (SKY, "-")}
MAX_BYTES = 150_000  # of a picture, if it can be: there are some fifty in the notebook
Array = np.ndarray
Names = Sequence[str]
Rows = Sequence[Mapping[str, Any]]


def use_style() -> None:
    """White background (also in a dark notebook), fonts that can be read, 110 dots an inch."""
    plt.style.use({"figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 110, "savefig.dpi": 110})
    plt.style.use(dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False))
    plt.style.use({"axes.titlelocation": "left", "axes.titlesize": 10, "font.size": 9, "image.cmap": "gray"})
    plt.style.use({"axes.prop_cycle": plt.cycler(color=PALETTE), "figure.constrained_layout.use": True})


def show(path: str | Path, alt: str = "", *, vector: bool = False) -> None:
    """Save the current figure (see `save`), show exactly this file in the notebook, and say in words what it shows."""
    from IPython.display import Image, display

    if vector:
        plt.gcf().savefig(Path(path).with_suffix(".svg"), metadata={"Date": None})
    save(path)
    kind = "image/jpeg" if Path(path).suffix == ".jpg" else "image/png"
    display(Image(filename=str(path)), metadata={kind: {"alt": alt}})  # Colab's `Image` takes no alt


def save(path: str | Path) -> None:
    """Save and close the current figure, in few bytes: photographs and noise as `.jpg`, all else as a `.png`."""
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png")
    plt.close()
    picture = PIL.Image.open(buffer).convert("RGB")
    for quality, colours in ((85, 256), (75, 128), (60, 64)):
        if Path(path).suffix == ".jpg":
            picture.save(path, quality=quality, subsampling=0, optimize=True)
        else:
            picture.quantize(colours, kmeans=1).save(path, optimize=True)
        if Path(path).stat().st_size <= MAX_BYTES:
            break


class Text(str):
    """Markdown, which a notebook typesets, and whatever knows no Markdown shows as it was written."""

    __repr__ = _repr_markdown_ = str.__str__


def claim(sentence: str, holds: bool, numbers: str = "") -> None:
    """Say whether a sentence of the text holds in this run, and by which numbers.

    >>> claim("A U-Net beats the threshold", 0.9 > 0.7, "0.90 against 0.70")
    ✓ A U-Net beats the threshold (0.90 against 0.70)
    """
    print(f"{'✓' if holds else '✗'} {sentence}" + f" ({numbers})" * bool(numbers))  # noqa: T201 - it is what it does


def source(*objects: Any) -> None:
    """Show functions, methods or classes as they stand in the modules."""
    from IPython.display import display

    for item in objects:
        code = textwrap.dedent(inspect.getsource(item)).rstrip()
        display(Text(f"```python\n# {item.__module__.replace('.', '/')}.py: {item.__qualname__}\n{code}\n```"))


def table(rows: Rows | Sequence[Sequence[Any]], columns: Sequence[str] = (), *, digits: int = 3) -> Text:
    """A table of rows (dicts, or lists of the entries), floats with that many digits behind the point, "–" for NaN.

    >>> table([{"loss": "CE", "Dice": 0.91234}, {"loss": "both", "Dice": float("nan")}])
    | loss | Dice |
    |---|---|
    | CE | 0.912 |
    | both | – |
    """
    columns = columns or [str(name) for name in (rows[0] if rows else [])]
    cells = [[row[name] for name in columns] if isinstance(row, Mapping) else row for row in rows]

    def spelled(value: Any) -> str:
        return f"{value:.{digits}f}".replace("nan", "–") if isinstance(value, (float, np.floating)) else str(value)

    lines = [f"| {' | '.join(map(spelled, row))} |" for row in [columns, *cells]]
    return Text("\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]]))


def grid(rows: int, columns: int, *, size: float = 1.7, title: str = "") -> Array:
    """A grid of axes for square pictures, always as a two-dimensional array."""
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.2) * rows + 0.3), squeeze=False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return axes


def square(around: Array, *arrays: Array) -> list[Array]:
    """Cut the same square, as large as fits, out of all arrays (…, H, W), around the middle of a label."""
    (H, W), side = around.shape, min(around.shape)
    inside = np.argwhere((around > 0) & (around != IGNORE_INDEX))
    middle = inside.mean(axis=0) if len(inside) else np.array([H, W]) / 2
    top, left = np.clip(middle - side / 2, 0, (H - side, W - side)).astype(int)
    return [array[..., top : top + side, left : left + side] for array in arrays]


def photo(image: Array, dataset: Any) -> Array:
    """An image (C, H, W) as it was before it was normalised by the `mean` and `std` of its dataset, between 0 and 1."""
    if np.isnan(dataset.mean).any():  # it was standardised: its brightness is not known any more
        return (np.asarray(image) - np.min(image)) / max(np.ptp(image), 1e-6)
    mean, std = (np.reshape(numbers, (-1, 1, 1)) for numbers in (dataset.mean, dataset.std))
    return np.clip(np.asarray(image) * std + mean, 0, 1)


def show_image(ax: Axes, image: Array, title: str = "", **options: Any) -> Axes:
    """Draw an image, (H, W), (C, H, W) or (H, W, C), stretched to its own range; of C channels three or one."""
    image = np.asanyarray(image)  # a masked array keeps its mask: such pixels stay white
    if image.ndim == 3 and (image.shape[0] in (1, 3) or image.shape[0] < image.shape[2]):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3:
        image = image[..., : 3 if image.shape[2] >= 3 else 1]
        low, high = np.percentile(image, (0.5, 99.5))
        image = np.clip((image - low) / max(high - low, 1e-9), 0, 1).squeeze()
    elif image.dtype != bool and "vmin" not in options and "cmap" not in options:
        options["vmin"], options["vmax"] = np.percentile(image, (0.5, 99.5))
    ax.imshow(image, interpolation="nearest", **options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.5)
    ax.set_title(title, fontsize=9, parse_math=False)  # a file name may hold $
    return ax


def draw_contours(ax: Axes, label: Array, color: str, label_class: int = 1, width: float = 1.0) -> Axes:
    """Outline the pixels of one class exactly along their edges."""
    mask = np.kron(np.pad(np.asarray(label) == label_class, 1), np.ones((4, 4)))
    if mask.any():
        y, x = ((np.arange(side) + 0.5) / 4 - 1.5 for side in mask.shape)
        ax.contour(x, y, mask, levels=[0.5], colors=[color], linewidths=width)
    return ax


def show_errors(ax: Axes, image: Array, target: Array, prediction: Array, title: str = "") -> Axes:
    """The image with the wrong pixels on it: false alarms orange, missed pixels blue, ignored pixels grey."""
    show_image(ax, image, title)
    target, prediction = np.asarray(target), np.asarray(prediction)
    layer = np.select([target == IGNORE_INDEX, prediction == target, prediction > 0], [3, 0, 1], default=2)
    colours = ["#FFFFFF00", ORANGE, BLUE, "#BBBBBB"]
    ax.imshow(layer, cmap=ListedColormap(colours), vmin=0, vmax=3, interpolation="nearest")
    return ax


def overlay(image: Array, label: Array) -> Array:
    """The image (H, W) or (H, W, C) with its classes on it: uint8 (H, W, 3), half of a colour inside, all on edges."""
    image = np.atleast_3d(image)
    image = image[..., : 3 if image.shape[2] >= 3 else 1]
    step = max(max(label.shape) // 1024, 1)
    low, high = np.percentile(image[::step, ::step], (0.5, 99.5))
    shown = np.clip((image - np.float32(low)) * np.float32(255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    shown = np.repeat(shown, 3 // shown.shape[2], axis=2)
    is_object = (label > 0) & (label != IGNORE_INDEX)
    padded, is_edge = np.pad(label, 1, mode="edge"), np.zeros(label.shape, bool)
    for beside in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        is_edge |= is_object & (beside != label)
    colours = (255 * to_rgba_array(CLASS_COLOURS)[:, :3]).round().astype(np.uint8)
    paint = colours[label % len(colours)]
    shown[is_object] = shown[is_object] // 2 + paint[is_object] // 2
    shown[is_edge] = paint[is_edge]
    return shown


def show_classes(ax: Axes, label: Array, title: str = "", num_classes: int = 2) -> Axes:
    """A label map (H, W) in the colours of its classes, at most 11; ignored pixels are white."""
    shown = np.ma.masked_equal(np.asarray(label), IGNORE_INDEX)
    colours = ListedColormap(CLASS_COLOURS[:num_classes])
    return show_image(ax, shown, title, cmap=colours, vmin=-0.5, vmax=num_classes - 0.5)


def legend(ax: Axes, areas: Mapping[str, str], lines: Mapping[str, tuple[str, Any]] | None = None) -> Axes:
    """Explain colours of areas, name → colour, and of lines, name → (colour, style), below the figure of `ax`."""
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in areas.items()]
    for name, (colour, style) in (lines or {}).items():
        handles.append(plt.Line2D([], [], color=colour, linestyle=style, label=name))
    ax.figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 6), fontsize=8)
    return ax


def show_regions(ax: Axes, image: Array, regions: Mapping[str, Array], title: str = "", **options: Any) -> Axes:
    """The image with critical regions on it, kind → mask (H, W), in colour and outlined; holes lie below the others."""
    show_image(ax, image, title, **options)
    for kind, mask in sorted(regions.items(), key=lambda entry: not entry[0].startswith("hole")):
        colour = REGION_COLOURS[kind.partition("_")[0]]
        ax.imshow(np.where(mask, 0, np.nan), cmap=ListedColormap([colour]), vmin=0, vmax=1, interpolation="nearest")
        draw_contours(ax, mask, colour, width=1.2)
    return ax


def log_ticks(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as 0.6, not as 6×10⁻¹."""
    low, high = sorted(axis.get_view_interval())
    locator = plt.LogLocator(subs=(1, 2, 5)) if high > 8 * low else plt.MaxNLocator(5)
    axis.set(major_locator=locator, major_formatter="{x:g}", minor_locator=plt.NullLocator())


def curves(axes: Sequence[Axes], histories: Mapping[str, Rows], metric: str = "mean_iou") -> Sequence[Axes]:
    """Loss (first axes) and a metric (second axes) over the epochs: training dashed, validation solid."""
    for ax, key, scale in zip(axes, ("loss", metric), ("log", "linear"), strict=True):
        for (name, history), colour in zip(histories.items(), cycle(PALETTE)):
            for part, word, line in (("train", "training", "--"), ("val", "validation", "-")):
                if points := [(row["epoch"], row[f"{part}_{key}"]) for row in history if f"{part}_{key}" in row]:
                    ax.plot(*zip(*points), line, color=colour, label=f"{name} {word}")
        ax.set(xlabel="epoch", ylabel=key.replace("_", " ").replace("iou", "IoU"), yscale=scale)
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    log_ticks(axes[0].yaxis)
    axes[1].legend(fontsize=8)
    return axes


def contact_sheet(images: Sequence[Array], labels: Sequence[Array], names: Names, classes: Names) -> Array:
    """Draw samples two in a row, each as image, label, and outlines on the image, in the colours of the `classes`."""
    axes = grid(-(-len(images) // 2), 6).reshape(-1, 3)
    for row, image, label, name in zip(axes, images, labels, names):
        show_image(row[0], image, printable(name if len(name) < 20 else f"{name[:18]}…"))
        show_classes(row[1], label, num_classes=min(len(classes), len(CLASS_COLOURS)))
        show_image(row[2], image)
        for number in np.unique(label[(label > 0) & (label < len(CLASS_COLOURS))]).tolist():
            draw_contours(row[2], label, CLASS_COLOURS[number], number)
    for ax in axes[len(images) :].flat:
        ax.axis("off")
    legend(axes[0, 0], dict(zip(classes, CLASS_COLOURS)))
    return axes


def draw_unet(stages: Sequence[Any], *, input_channels: int, num_classes: int, skip: str, upsampling: str) -> Axes:
    """Draw the U from the maps of its blocks (`inspection.stages`): height = size of the map, width ~ channels."""
    depth = len(stages) // 2
    _, ax = plt.subplots(figsize=(9, 0.8 + 0.72 * (depth + 1)))
    level = depth - np.abs(np.arange(len(stages)) - depth)
    x, y, height = 1.25 * np.arange(len(stages)), -1.0 * level, 0.72 * 0.8**level
    width = 0.12 * np.log2([stage.channels + 1 for stage in stages])
    ax.bar(x, height, width, y, color=[SKY] * (depth + 1) + [ORANGE] * depth, edgecolor=BLACK, linewidth=0.8)
    for k, stage in enumerate(stages):
        channels = f"{stage.inputs} → " * (skip == "concat" and k > depth) + f"{stage.channels}"
        ax.text(x[k], y[k] + height[k] + 0.02, channels, ha="center", va="bottom", fontsize=9, fontweight="bold")
        ax.text(x[k], y[k] - 0.02, f"{stage.height}×{stage.width}", ha="center", va="top", fontsize=8)
    links = [f"skip: {skip}"] * (skip != "none") + ["pooling indices"] * (upsampling == "unpool")
    ways = [(VERMILION if k < depth else GREEN, k, k + 1) for k in range(2 * depth)]
    ways += [(GREY, k, 2 * depth - k) for k in range(depth) if links]
    left, right, middle = x - width / 2, x + width / 2, y + height / 2
    for colour, a, b in ways:
        ax.annotate("", (left[b], middle[b]), (right[a], middle[a]), arrowprops={"arrowstyle": "-|>", "color": colour})
    ax.text(left[0] - 0.12, 0.36, f"image\nchannels: {input_channels}", ha="right", va="center", fontsize=9)
    ax.text(right[-1] + 0.12, 0.36, f"1×1 →\n{num_classes} logits", ha="left", va="center", fontsize=9)
    words = {"encoder: two 3×3 convolutions": SKY, "decoder: the same": ORANGE, "2×2 max pooling": VERMILION}
    words |= {f"up ×2: {upsampling}": GREEN} | ({" + ".join(links): GREY} if links else {})
    legend(ax, words)
    ax.set(xlim=(-1.4, x[-1] + 1.4), ylim=(-depth - 0.3, 1.1))
    ax.set_title("Bold: channels of each block's output (decoder: of its input → output); below: size of the map")
    ax.axis("off")
    return ax


def confirmed(ax: Axes, values: Mapping[str, Any], xlabel: str, first_colour: int = 0) -> Axes:
    """One row a candidate: (scores of its seeds, (mean, half the width of its interval)) as dots and a bar."""
    for row, (numbers, (mean, half)) in enumerate(values.values()):
        colour = PALETTE[(row + first_colour) % len(PALETTE)]
        ax.plot(numbers, [row - 0.12] * len(numbers), "o", color=colour, alpha=0.6, markersize=4)
        ax.errorbar(mean, row + 0.15, xerr=half, fmt="|", color=colour, markersize=10, capsize=4, markeredgewidth=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(ylim=(len(values) - 0.5, -0.5), xlabel=xlabel)
    return ax
