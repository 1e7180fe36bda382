"""Comparisons on a tiny set: each run once, rates chosen on validation, the test part opened for final runs alone."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from experiments import comparisons
from experiments.comparisons import LINKS, SETS, best_rate, fcn, much_road, patterns, roads, run_one, unet
from experiments.statistics import read_table, select
from imagesets.files import Sample
from imagesets.yeast import write_yeast
from learner import Learner
from losses import cross_entropy


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images, and a set of two networks, of which one has no learning rate."""
    monkeypatch.chdir(tmp_path)
    path = data.prepare(write_yeast(tmp_path / "six", num_images=6, height=64, width=64), tmp_path)
    recipe = replace(LINKS, prepare=lambda seed: path, epochs=4, batch=4, repeats=1, crop=32, lr=None, seeds=1)
    arms = {skip: replace(recipe, make=partial(unet, widths=(4, 8), skip=skip)) for skip in ("sum", "none")}
    monkeypatch.setitem(SETS, "tiny", arms | {"none": replace(arms["none"], lr=1e-3)})
    return path


def test_every_run_is_done_once_and_lands_in_the_tables(tiny, monkeypatch) -> None:
    comparisons.main(["--sets", "tiny"])
    rows, history = (read_table(f"figures/{name}.csv") for name in ("compare", "compare_history"))
    final, searched = select(rows, stage="final"), select(rows, stage="rate")
    assert [row["arm"] for row in final] == ["none", "sum"] and len(searched) >= 3
    assert all(row["test_mean_iou"] == row["test_images"] == "" for row in searched)  # not opened for a choice
    assert all(0 <= row["test_mean_iou"] <= 1 and row["steps"] == 4 for row in final)
    assert len(history) == 4 * len(final) + len(searched)
    losses = {row["lr"]: row["val_loss"] for row in searched}
    assert {row["arm"] for row in searched} == {"sum"} and losses[final[1]["lr"]] == min(losses.values())
    before = Path("figures/compare.csv").read_text()
    monkeypatch.setattr(torch.amp.GradScaler, "step", None)  # a second call trains nothing
    comparisons.main(["--sets", "tiny"])
    assert Path("figures/compare.csv").read_text() == before


def test_rows_of_other_places_stay_and_own_ones_are_replaced(tiny) -> None:
    run_one("tiny", "none", 0, 1e-3)
    comparisons.collect(comparisons.RUNS, comparisons.FIGURES, comparisons.TABLES)
    table = Path("figures/compare.csv")
    header, own = table.read_text().splitlines()
    other, stale = own.replace("tiny", "another"), own.replace("float", "other")
    table.write_text("\n".join([header, other, stale]) + "\n")
    comparisons.collect(comparisons.RUNS, comparisons.FIGURES, comparisons.TABLES)
    assert table.read_text().splitlines() == [header, other, own]
    committed = Path(comparisons.__file__).parents[1] / "figures" / "compare.csv"
    assert not committed.exists() or committed.read_text().splitlines()[0] == header  # the notebook reads both


def test_a_changed_recipe_is_trained_again(tiny, monkeypatch) -> None:
    first = run_one("tiny", "sum", 0, 1e-3)
    monkeypatch.setitem(SETS["tiny"], "sum", replace(SETS["tiny"]["sum"], epochs=5))
    assert run_one("tiny", "sum", 0, 1e-3)["steps"] == first["steps"] + 1


def test_the_search_for_a_rate_leaves_the_range_where_its_end_is_best(monkeypatch) -> None:
    tried = []

    def run(set_name, arm, seed, lr, stage):
        tried.append(lr)
        return {"val_loss": abs(lr - 0.03)}

    monkeypatch.setattr(comparisons, "run_one", run)
    assert best_rate("streets", "FCN-8s") == 0.03 and sorted(tried) == [0.001, 0.003, 0.01, 0.03, 0.1]


def test_fcns_of_a_seed_share_one_trained_classifier(tiny, monkeypatch) -> None:
    train = data.SegmentationDataset(tiny, "train", seed=1)
    torch.manual_seed(1)
    coarse = fcn(train, 32)
    torch.manual_seed(1)
    monkeypatch.setattr(torch.amp.GradScaler, "step", None)  # it is only read now
    fine = fcn(train, 8)
    for name in ("stages.0.0.weight", "head.0.weight"):
        assert torch.equal(coarse.state_dict()[name], fine.state_dict()[name])


def test_the_pattern_is_that_of_the_kernel_for_each_period() -> None:
    net = torch.nn.Sequential(torch.nn.Upsample(scale_factor=0.5), torch.nn.ConvTranspose2d(1, 1, 2, stride=2))
    net[1].weight.data, net[1].bias.data = torch.zeros(1, 1, 2, 2), torch.ones(1)
    assert [*patterns(Learner(net, cross_entropy), 1).values()] == [0.0, 0.0]  # a constant
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    net[1].weight.data[0, 0, 0] = 1  # rows of 2 and 1: mean 1.5, deviation 0.5, root of the mean square √2.5
    assert [*patterns(Learner(net, cross_entropy), 1).values()] == pytest.approx([0.5 / 2.5**0.5] * 2)


def test_each_image_is_in_one_fold_and_neighbours_in_the_same(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "training" / "image_2"
    folder.mkdir(parents=True)
    names = [f"um_{i:06d}" for i in range(289)]
    for name in names:
        (folder / f"{name}.png").touch()
    monkeypatch.setattr(comparisons, "source_folder", lambda *arguments: tmp_path)
    monkeypatch.setattr(comparisons, "prepare", lambda source, where, changes: changes[0])
    folds = [roads(fold, 64, [much_road], block=12) for fold in range(5)]
    held_out = [name for fold in folds for name in fold.val]
    assert len(held_out) == len(set(held_out)) == 287
    for fold in folds:
        assert not set(fold.train) & set(fold.val) and len(fold.train) + len(fold.val) == 287
    pairs = itertools.pairwise(sorted(held_out))
    together = sum(any({*pair} <= set(fold.val) for fold in folds) for pair in pairs)
    assert together >= 287 * 11 / 12 - 2
    official = roads(0)
    assert (len(official.train), len(official.val)) == (272, 15)


def test_much_road_is_one_label_for_the_whole_image() -> None:
    label = torch.zeros(6, 10, dtype=torch.uint8).numpy()
    label[0] = 1  # 10 of 60 pixels are not more than a sixth
    assert much_road(Sample("a", label, label)).label.sum() == 0
    label[1, 0] = 1
    assert much_road(Sample("a", label, label)).label.min() == 1


def test_dogs_alone_are_tested_and_train_only_if_they_may() -> None:
    parts, image = {"Bengal_1": "train", "Persian_2": "test", "pug_3": "val", "beagle_4": "test"}, np.zeros((2, 2))
    samples = [Sample(name, image, image, part) for name, part in parts.items()]
    all_train, cats_train = comparisons.dogs_test, partial(comparisons.dogs_test, only_cats=True)
    assert [sample.name for sample in map(all_train, samples) if sample] == ["Bengal_1", "pug_3", "beagle_4"]
    assert [sample.name for sample in map(cats_train, samples) if sample] == ["Bengal_1", "beagle_4"]


def test_a_changed_photo_takes_its_label_along() -> None:
    target = torch.zeros(8, 32, 32, dtype=torch.long)
    target[:, 8:20, 12:30] = 1
    images = target[:, None].float().expand(-1, 3, -1, -1)
    change = partial(comparisons.change_photos, images, target)
    (seen, label), (again, _) = (change(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(seen, again) and not torch.equal(label, target) and set(label.unique().tolist()) == {0, 1}
    for image, mask in zip(seen.mean(dim=1), label == 1):
        assert mask.any() and image[mask].mean() - image[~mask].mean() > 0.5


def test_half_of_the_photos_get_the_animal_of_the_one_before_and_its_label(monkeypatch) -> None:
    monkeypatch.setattr(comparisons, "change_photos", lambda *batch, generator: batch)
    B = 32
    images = torch.arange(B, dtype=torch.float32).view(B, 1, 1, 1).expand(B, 3, 8, 8)
    target = torch.zeros(B, 8, 8, dtype=torch.long)
    for i in range(B):
        target[i, :, i % 8], target[i, 0, i % 8] = 1, 2  # an animal is a column, its border the top of it
    seen, label = comparisons.paste_animals(images, target, generator=torch.Generator().manual_seed(0))
    pasted = [i for i in range(B) if not torch.equal(label[i], target[i])]
    assert B / 4 < len(pasted) < 3 * B / 4
    for i in range(B):
        animal = target[i - 1] > 0 if i in pasted else torch.zeros(8, 8, dtype=torch.bool)
        assert torch.equal(label[i], torch.where(animal, target[i - 1], target[i]))
        assert torch.equal(seen[i], torch.where(animal, images[i - 1], images[i]))
