"""Names of runs: the same in every process, another one for every change."""

import functools
import linecache

from torch import nn
from training.run_settings import data_settings, image_names, model_hash, name_of

from losses import TopologyLoss, cross_entropy, dice_loss
from unet import UNet


def notebook_function(factor: str):
    """A function as a notebook's cell defines it."""
    source = f"def augment(x):\n    return {factor} * x\n"
    linecache.cache[f"<cell {factor}>"] = (len(source), None, source.splitlines(True), f"<cell {factor}>")
    namespace = {"__name__": "__main__"}
    exec(compile(source, f"<cell {factor}>", "exec"), namespace)
    return namespace["augment"]


def test_an_edited_function_of_the_notebook_is_another_setting():
    names = [name_of(notebook_function(factor)) for factor in ("1", "2")]
    assert names[0] != names[1] and all(name.startswith("augment-") for name in names)


def test_losses_are_named_with_their_settings():
    assert name_of(cross_entropy) == "cross_entropy"
    assert name_of(functools.partial(dice_loss, smooth=2.0)) == "dice_loss(smooth=2.0)"
    assert name_of(TopologyLoss(strength=2.0)) != name_of(TopologyLoss(strength=1.0))


def test_another_architecture_has_another_hash():
    assert model_hash(UNet(widths=(4, 8))) == model_hash(UNet(widths=(4, 8))) != model_hash(UNet(widths=(4, 4)))


class Loader(list):
    """A loader of two batches with named images."""

    class dataset:
        names = ("a", "b", "c", "d")
        fingerprint = "f"

    batch_sampler = ([(3, 1), (3, 0)], [(3, 3), (3, 2)])


def test_images_of_a_batch_are_named():
    assert image_names(Loader(), 1) == ["d", "c"]
    assert image_names([], 0) == []
    Loader.batch_sampler = ([0], [2])
    assert image_names(Loader(), 1) == ["c"]


def test_data_settings_tell_the_content():
    assert data_settings(Loader([1]))["data"] == "f" and data_settings([1, 2])["batches"] == 2
    assert data_settings(nn.ModuleList())["transform"] == "NoneType"
