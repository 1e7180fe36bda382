"""Drawing: the right pixels in the right colours, for any number of classes, and no fault on odd input."""

import io
import types

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
from matplotlib.colors import to_rgba

import plots
from unet import UNet


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # what cannot be drawn raises here
    plt.close(figure)


def test_errors_are_told_apart(ax):
    target, prediction = np.array([[0, 0, 1, 1, 255]]), np.array([[0, 1, 0, 1, 1]])
    plots.show_errors(ax, np.zeros((1, 5)), target, prediction)
    assert ax.images[-1].get_array().tolist() == [[0, 1, 2, 0, 3]]  # right, false alarm, missed, right, ignored


def test_regions_have_the_colour_of_their_kind_objects_above_holes(ax):
    merge, hole = np.array([[1, 0, 0]], dtype=bool), np.array([[1, 1, 0]], dtype=bool)
    plots.show_regions(ax, np.zeros((1, 3)), {"merge": merge, "hole_split": hole})
    plots.legend(ax, plots.REGION_COLOURS, plots.LABEL_LINE)
    drawn = [image.to_rgba(image.get_array())[0] for image in ax.images[1:]]
    colours = [tuple(np.round(255 * layer[0, :3]).astype(int)) for layer in drawn]
    assert colours == [(0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)]  # the hole first, the merge upon it
    assert [layer[:, 3].tolist() for layer in drawn] == [[1, 1, 0], [1, 0, 0]]  # clear where there is no region
    plots.show_regions(ax, np.zeros((1, 3)), {"merge": np.zeros((1, 3), dtype=bool)})  # nothing to draw


def test_classes_have_their_colours_and_ignored_pixels_none(ax):
    plots.show_classes(ax, np.array([[0, 1, 10, 255]]), num_classes=11)
    shown = ax.images[0].to_rgba(ax.images[0].get_array())[0]
    wanted = [to_rgba(plots.CLASS_COLOURS[k]) for k in (0, 1, 10)]
    assert np.allclose(shown[:3], wanted)
    assert shown[3, 3] == 0  # transparent: the white of the figure
    assert len(set(plots.CLASS_COLOURS)) == 11
    plots.legend(ax, dict(zip(("sky", "road"), plots.CLASS_COLOURS)))
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["sky", "road"]


def test_contours_follow_the_edges_of_pixels(ax):
    label = np.zeros((6, 8), dtype=int)
    label[2:4, 3:6] = 1
    plots.draw_contours(ax, label, plots.ORANGE)
    x, y = np.concatenate([p.vertices for p in ax.collections[0].get_paths()]).T
    # pixels 3 … 5 and 2 … 3 reach from 2.5 to 5.5 and from 1.5 to 3.5; the line may cut a corner by an eighth
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((2.5, 5.5, 1.5, 3.5), abs=0.13)
    plots.draw_contours(ax, np.zeros((3, 3)), plots.ORANGE)  # nothing to outline


def test_the_square_holds_the_middle_of_the_label():
    label = np.zeros((10, 4), dtype=int)
    label[7:9] = 1
    (cut,) = plots.square(label, label)
    assert cut.shape == (4, 4) and cut.sum() == 8
    for nothing in (np.zeros((6, 3), dtype=int), np.full((6, 3), 255)):
        assert plots.square(nothing, nothing)[0].shape == (3, 3)


@pytest.fixture
def shown(monkeypatch):
    displayed = []  # pairs of what is shown and what is said of it
    monkeypatch.setattr("IPython.display.display", lambda what, metadata=None: displayed.append((what, metadata)))
    return displayed


def test_a_saved_picture_is_small_keeps_our_colours_and_says_what_it_shows(tmp_path, ax, shown):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    plots.show_image(ax, noise)
    ax.plot([0, 63], [0, 63], color=plots.ORANGE, linewidth=5)
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png")
    plots.show(tmp_path / "a.png", alt="noise", vector=True)
    (image, said), *_ = shown
    assert image._repr_png_() and said == {"image/png": {"alt": "noise"}}
    picture = PIL.Image.open(tmp_path / "a.png")
    assert picture.mode == "P" and (tmp_path / "a.png").stat().st_size < len(buffer.getvalue())
    colours = {colour for _, colour in picture.convert("RGB").getcolors()}
    assert {(0xE6, 0x9F, 0x00), (255, 255, 255)} <= colours
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_a_photograph_keeps_its_colours_through_normalisation_and_file(tmp_path, ax, shown):
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:1:48j, 0:1:48j], 0.5)).astype(np.float32)
    dataset = types.SimpleNamespace(mean=np.array([0.4, 0.5, 0.6]), std=np.array([0.1, 0.2, 0.3]))
    mean, std = (numbers[:, None, None] for numbers in (dataset.mean, dataset.std))
    assert np.allclose(plots.photo((ramp - mean) / std, dataset), ramp, atol=1e-6)
    unknown = types.SimpleNamespace(mean=np.full(3, np.nan), std=np.full(3, np.nan))  # each image by its own numbers
    stretched = plots.photo(ramp - 7, unknown)
    assert stretched.min() == 0 and stretched.max() == 1
    plots.show_image(ax, ramp)
    plots.show(tmp_path / "a.jpg", alt="a ramp")
    (image, said), *_ = shown
    assert image._repr_jpeg_() and said == {"image/jpeg": {"alt": "a ramp"}}
    assert len(PIL.Image.open(tmp_path / "a.jpg").getcolors(10**6)) > 256


def test_a_claim_says_whether_it_holds_and_by_which_numbers(capsys):
    plots.claim("two is more than one", 2 > 1, "2 against 1")
    plots.claim("one is more than two", np.bool_(False))
    assert capsys.readouterr().out.splitlines() == ["✓ two is more than one (2 against 1)", "✗ one is more than two"]


def test_the_source_of_a_method_is_shown_as_code_and_as_text(shown):
    plots.source(UNet.forward)
    (code, _), *_ = shown
    lines = repr(code).splitlines()
    assert lines[:3] == ["```python", "# unet.py: UNet.forward", lines[2]] and lines[2].startswith("def forward(self")
    assert code._repr_markdown_() == repr(code) and lines[-1] == "```" and lines[-2].startswith("    return")


@pytest.mark.parametrize("low, high, top", [(0.02, 5, ["0.02", "0.05", "0.1"]), (0.31, 0.92, ["0.45", "0.6", "0.75"])])
def test_the_numbers_of_a_logarithmic_axis_can_be_read(ax, low, high, top):
    ax.set(yscale="log", ylim=(low, high))
    plots.log_ticks(ax.yaxis)
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.get_yticklabels() if low <= float(text.get_text()) <= high]
    assert texts[:3] == top and not [text for text in ax.get_yticklabels(minor=True) if text.get_text()]


def test_contact_sheet_has_image_label_and_outlines_of_each_sample():
    images = [np.zeros((6, 8)), np.zeros((6, 8, 3), np.uint8), np.ones((9, 4))]
    labels = [np.eye(6, 8, dtype=np.uint8), np.full((6, 8), 255, np.uint8), np.full((9, 4), 12, np.uint8)]
    axes = plots.contact_sheet(images, labels, ["a", "b" * 40, "$\\frac$\n\udcff^_"], [f"class {k}" for k in range(13)])
    assert axes.shape == (4, 3)  # two samples in a row, so one place is left
    titles = [ax.get_title() or ax.get_title(loc="left") for ax in axes[:, 0]]
    assert titles == ["a", f"{'b' * 18}…", "$\\frac$??^_", ""]
    assert [text.get_text() for text in axes[0, 0].figure.legends[0].get_texts()][:2] == ["class 0", "class 1"]
    axes[0, 0].figure.canvas.draw()  # a formula that is none would be refused here
    assert [ax.axison for ax in axes[3]] == [False] * 3
    assert len(axes[0, 2].collections) > 0 and len(axes[1, 2].collections) == 0  # ignored pixels have no outline
    plt.close("all")


@pytest.mark.parametrize("channels, drawn", [(2, 1), (4, 3), (5, 3)])
def test_images_of_any_number_of_channels_are_drawn(ax, channels, drawn):
    image = np.random.default_rng(0).random((6, 8, channels))
    wanted = plots.show_image(ax, image[..., :drawn]).images[0].get_array()
    for array in (image, np.moveaxis(image, -1, 0)):
        assert np.array_equal(plots.show_image(ax, array).images[-1].get_array(), wanted)
    assert plots.overlay(image, np.zeros((6, 8), np.uint8)).shape == (6, 8, 3)


def test_overlay_colours_classes_and_their_edges():
    # A square of 3×3 pixels of class 1 in black: its middle has half of the colour, its edge all of it.
    image, label = np.zeros((2, 5, 7), np.uint8)
    label[1:4, 1:4], label[0, 6], image[:, 5] = 1, 255, 200
    shown = plots.overlay(image, label)
    colour = (255 * np.array(to_rgba(plots.CLASS_COLOURS[1]))[:3]).round().astype(int)
    assert shown.dtype == np.uint8 and shown.shape == (5, 7, 3)
    assert shown[1, 1].tolist() == shown[3, 2].tolist() == colour.tolist()
    assert shown[2, 2].tolist() == (colour // 2).tolist()
    assert shown[4, 5].tolist() == [255] * 3 and shown[0, 6].tolist() == shown[0, 0].tolist() == [0] * 3


def test_a_table_shows_as_markdown_and_as_text():
    rows = [{"loss": "CE", "Dice": 0.91234, "n": 3}, {"loss": "both", "Dice": float("nan"), "n": np.int64(4)}]
    wanted = "| loss | n | Dice |\n|---|---|---|\n| CE | 3 | 0.91 |\n| both | 4 | – |"
    found = plots.table(rows, ("loss", "n", "Dice"), digits=2)
    assert found == wanted == found._repr_markdown_() == repr(found)
    assert plots.table([["CE", 3, "0.91"], ["both", 4, float("nan")]], ("loss", "n", "Dice")) == wanted
    assert plots.table(rows).splitlines()[0] == "| loss | Dice | n |"
    assert plots.table([], ("loss", "n")) == "| loss | n |\n|---|---|"
