"""The study of losses on a tiny set: each run once, tables that only grow, thresholds chosen without test images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label as label_components

import study
from comparison import read_table
from losses import TopologyLoss
from samples import Sample
from study import LOSSES, SETS, Only, Parts, Shrunk, StudySet, choose_threshold, class_weights, dice, judge, make_loss
from synthetic import write_yeast
from targets import WeightMap, separate_cells


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> StudySet:
    monkeypatch.chdir(tmp_path)
    folder = write_yeast(tmp_path / "tiny", num_images=6, height=64, width=64)
    changes = (Parts(train=3, val=1), separate_cells)
    small = {"widths": (4, 8), "crop": 32, "batch": 4, "thickness": 2, "repeats": 2, "epochs": 2}
    study_set = StudySet(str(folder), WeightMap(10, 5, separation=True), 1, seeds=1, changes=changes, **small)
    monkeypatch.setitem(SETS, "tiny", study_set)
    return study_set


def test_every_loss_runs_once_and_lands_in_the_tables(tiny, monkeypatch, capsys) -> None:
    study.main(["--sets", "tiny"])
    rows = read_table("figures/study.csv")
    assert [(r["loss"], r["views"], r["rule"]) for r in rows] == [
        (loss, views, rule) for loss in sorted(LOSSES) for views in (1, 4) for rule in ("fixed", "validation")
    ]
    for row in rows:
        assert 0 <= row["dice"] <= 1
        assert row["rule"] == "validation" or row["threshold"] == 0.5
    assert len(read_table("figures/study_images.csv")) == len(LOSSES) * 2 * 2  # views, two test images
    assert len(read_table("figures/study_thresholds.csv")) == len(LOSSES) * 2 * 19
    before = Path("figures/study.csv").read_text()
    monkeypatch.setattr(study, "train", None)  # a second call trains nothing
    study.main(["--sets", "tiny"])
    assert Path("figures/study.csv").read_text() == before
    capsys.readouterr()


def test_examples_are_drawn_once_both_runs_are_there(tiny, capsys) -> None:
    study.main(["--sets", "tiny", "--losses", "ce"])
    assert not list(study.FIGURES.glob("*.png"))
    study.main(["--sets", "tiny", "--losses", "both"])
    with Image.open(study.FIGURES / "study_tiny.png") as picture:
        assert min(picture.size) > 500
    capsys.readouterr()


def test_rows_of_other_runs_stay_and_own_ones_are_replaced(tiny, capsys) -> None:
    study.main(["--sets", "tiny", "--losses", "ce"])
    table = study.FIGURES / "study.csv"
    header, first, *others = table.read_text().splitlines()
    other, stale = first.replace("tiny", "another"), first.rpartition(",")[0] + ",999"
    table.write_text("\n".join([header, other, stale, *others]) + "\n")
    study.collect()
    assert table.read_text().splitlines() == [header, other, first, *others]
    capsys.readouterr()


def test_other_settings_are_another_run(tiny, monkeypatch, capsys) -> None:
    study.run_one("tiny", "ce", 0)
    file = study.RUNS / "tiny" / "ce" / "0.json"
    before = json.loads(file.read_text())
    study.run_one("tiny", "ce", 0)
    assert json.loads(file.read_text()) == before
    monkeypatch.setitem(SETS, "tiny", replace(tiny, lr=1e-4))
    study.run_one("tiny", "ce", 0)
    after = json.loads(file.read_text())
    assert after["settings"] != before["settings"]
    assert after["rows"][0]["dice"] != before["rows"][0]["dice"]
    capsys.readouterr()


def test_settings_name_a_run_in_every_process(tiny, capsys) -> None:
    study.run_one("tiny", "ce", 0)
    assert " at 0x" not in json.loads((study.RUNS / "tiny" / "ce" / "0.json").read_text())["settings"]
    capsys.readouterr()


def test_losses_of_one_seed_start_from_the_same_weights_and_crops(tiny, monkeypatch) -> None:
    first = []

    def fit(learner, epochs) -> None:
        batch = next(iter(learner.train_loader))
        first.append((next(learner.model.parameters()).detach().clone(), batch[0], batch[1]))

    monkeypatch.setattr(study.Learner, "fit", fit)
    for loss in LOSSES:
        study.train("tiny", loss, 3)
    for weights, images, target in first[1:]:
        assert torch.equal(weights, first[0][0])
        assert torch.equal(images, first[0][1])
        assert torch.equal(target, first[0][2])


def test_the_threshold_with_the_fewest_errors_wins_and_in_a_tie_the_one_next_to_a_half() -> None:
    label = np.array([[1, 1, 1, 0, 1, 1, 1]] * 3)
    probs = np.where(label == 1, 0.92, 0.62).astype(np.float32)  # one bridge at 0.60 and below
    best, rows = choose_threshold([probs], [label])
    assert best == 0.65
    assert [row["merges"] for row in rows] == [1] * 12 + [0] * 7  # 0.05 … 0.60 | 0.65 … 0.95
    assert rows[-1]["missed"] == 2  # nothing is left above 0.92


def test_scores_are_those_of_independent_counts() -> None:
    rng = np.random.default_rng(0)
    labels = [(rng.random((24, 24)) > 0.6).astype(np.int64) for _ in range(3)]
    guesses = [label.astype(bool) ^ (rng.random((24, 24)) > 0.9) for label in labels]
    row = judge(guesses, labels, SETS["yeast"])
    a, b = np.concatenate(guesses), np.concatenate(labels) == 1
    assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum())) == dice(guesses, labels)
    assert row["mean_iou"] == pytest.approx(np.mean([(x & y).sum() / (x | y).sum() for x, y in ((a, b), (~a, ~b))]))
    objects = [abs(label_components(g).max() - label_components(y).max()) for g, y in zip(guesses, labels)]
    assert row["beta0_error"] == pytest.approx(np.mean(objects))  # scikit-image: 8-connected in 2-D by default
    kinds = [row[k] for k in ("merges", "splits", "spurious", "missed")]
    holes = [row[f"hole_{k}"] for k in ("merges", "splits", "spurious", "missed")]
    assert row["errors"] == pytest.approx(sum(kinds) + sum(holes))


def test_perfect_predictions_have_perfect_scores() -> None:
    labels = [np.kron(np.eye(3, dtype=np.int64), np.ones((5, 5), np.int64))]
    for name in ("yeast", "walls"):
        row = judge([labels[0] == 1], labels, SETS[name])
        assert row["errors"] == row["beta0_error"] == row["arand"] == row["voi_split"] == row["hd95"] == 0
        assert row["dice"] == row["panoptic_quality"] == row["object_f1"] == row["boundary_f1"] == row["cl_dice"] == 1


def test_names_of_losses_carry_their_strength(tiny) -> None:
    path = study.build(tiny)
    loss = make_loss("both:3", tiny, path, steps=40)
    assert isinstance(loss.terms[0][1], TopologyLoss)
    assert (loss.terms[0][1].strength, loss.terms[0][1].margin, loss.terms[0][1].warm_up) == (3.0, 1.0, 40)
    assert make_loss("topology", tiny, path, steps=40).terms[0][1].strength == tiny.strength
    with pytest.raises(KeyError):
        make_loss("unknown", tiny, path, steps=40)


def test_class_weights_give_both_classes_the_same_share(tiny) -> None:
    path = study.build(tiny)
    labels = np.concatenate([label.ravel() for label in study.labels_of(path, "train")])
    share = class_weights(path).numpy() * np.bincount(labels) / labels.size
    assert share == pytest.approx([0.5, 0.5])


def test_parts_follow_the_number_of_an_image() -> None:
    parts = [Parts(2, 1)(Sample(f"yeast_{i:02d}", np.zeros((2, 2)), np.zeros((2, 2)))).part for i in range(5)]
    assert parts == ["train", "train", "val", "test", "test"]


def test_only_named_training_images_stay() -> None:
    samples = [
        Sample(name, np.zeros(1), np.zeros(1), part) for name, part in (("a", "train"), ("b", "train"), ("c", "val"))
    ]
    assert [sample.name for sample in samples if Only(("b",))(sample)] == ["b", "c"]
    assert len(SETS["walls10"].changes[0].names) == 10


def test_a_shrunk_network_answers_in_full_size() -> None:
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images[:, :2]

    images = torch.arange(2 * 3 * 8 * 6, dtype=torch.float32).reshape(2, 3, 8, 6)
    logits = Shrunk(Network(), 2)(images)
    assert logits.shape == (2, 2, 8, 6)
    assert torch.equal(seen[0][0, 0, 0, 0], images[0, 0, :2, :2].mean())
    assert torch.allclose(logits.mean(dim=(2, 3)), images[:, :2].mean(dim=(2, 3)))
