"""The study of losses on a tiny set: each run once, tables that only grow, thresholds chosen without test images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checks import InputError
from experiments import study
from experiments.statistics import read_table
from experiments.study import LOSSES, SETS, StudySet, file_of, make_loss
from imagesets.changes import separate_cells
from imagesets.yeast import write_yeast
from losses import TopologyLoss
from training.checkpoint import identity

RULES = ("fixed", "fixed+cleaned", "validation", "validation+cleaned")


def three_train_one_validates(sample):
    number = int(sample.name[-2:])
    return replace(sample, part="train" if number < 3 else "val" if number < 4 else "test")


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> StudySet:
    monkeypatch.chdir(tmp_path)
    folder = write_yeast(tmp_path / "tiny", num_images=6, height=64, width=64)
    changes = (three_train_one_validates, separate_cells)
    small = {"widths": (4, 8), "crop": 32, "batch": 4, "thickness": 2, "repeats": 2, "epochs": 2}
    study_set = StudySet(str(folder), 1, seeds=1, changes=changes, **small)
    monkeypatch.setitem(SETS, "tiny", study_set)
    return study_set


def test_every_loss_runs_once_and_lands_in_the_tables(tiny, monkeypatch) -> None:
    monkeypatch.setitem(SETS, "tiny", replace(tiny, views=(1,), losses=tuple(LOSSES)))
    study.main(["--sets", "tiny"])
    rows = read_table("figures/study.csv")
    assert [(r["loss"], r["rule"]) for r in rows] == [(loss, rule) for loss in sorted(LOSSES) for rule in RULES]
    assert all(0 <= row["dice"] <= 1 and (row["rule"][0] == "v" or row["threshold"] == 0.5) for row in rows)
    assert all("cleaned" in row["rule"] or row["pieces"] == row["holes_filled"] == 0 for row in rows)
    errors = {(row["loss"], row["rule"]): row["val_errors"] for row in rows}  # by which thresholds and sizes are chosen
    assert len({*errors.values()}) > 3
    for loss, rule in errors:
        assert errors[loss, f"{rule.partition('+')[0]}+cleaned"] <= errors[loss, rule]
        assert errors[loss, rule] <= errors[loss, rule.replace("validation", "fixed")] or "cleaned" in rule
    assert len(read_table("figures/study_images.csv")) == len(LOSSES) * 2 * 2  # cleaned or not, two test images
    files = [file_of("tiny", loss, 0).read_text() for loss in LOSSES]
    assert not any(" at 0x" in str(json.loads(text)["settings"]) for text in files)  # alike in every process
    before = Path("figures/study.csv").read_text()
    monkeypatch.setattr(torch.amp.GradScaler, "step", None)  # a second call trains nothing
    study.main(["--sets", "tiny"])
    assert Path("figures/study.csv").read_text() == before


def test_small_components_go_and_small_holes_are_filled_under_sizes_from_validation() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:6, 1:6], mask[3, 3], mask[8, 7:9] = True, False, True  # a ring of 24 pixels around a hole of 1; 2 pixels
    assert study.cleaned(mask, 0, 0).tolist() == mask.tolist()
    assert study.cleaned(mask, 3, 0).sum() == 24 and study.cleaned(mask, 2, 2).sum() == 27
    truth = np.zeros((40, 40), int)
    truth[5:25, 5:25], guess = 1, np.zeros((40, 40), bool)
    guess[5:25, 5:25], guess[30:32, 30:32], guess[10, 10] = True, True, False
    assert study.choose_sizes([guess], [truth]) == (30, 30)  # the smallest that do
    assert study.choose_sizes([truth == 1], [truth]) == (0, 0)


def test_all_views_of_a_square_image_agree_for_a_network_without_neighbours(tiny) -> None:
    learner, path = study.make_learner("tiny", "ce", 0)
    learner.model = torch.nn.Conv2d(1, 2, 1)
    for views in (4, 8):
        for one, mean in zip(*(study.predict(learner, path, "val", v) for v in (1, views))):
            np.testing.assert_allclose(one, mean, atol=1e-6)


def test_rows_of_other_runs_stay_and_own_ones_are_replaced(tiny) -> None:
    study.main(["--sets", "tiny", "--losses", "ce"])
    table = study.FIGURES / "study.csv"
    header, first, *others = table.read_text().splitlines()
    other, stale = first.replace("tiny", "another"), first.replace(",fixed,0.5,", ",fixed,0.9,")
    table.write_text("\n".join([header, other, stale, *others]) + "\n")
    study.collect(study.RUNS, study.FIGURES, study.TABLES)
    assert table.read_text().splitlines() == [header, other, first, *others]


def test_collecting_a_new_run_keeps_the_committed_rows(tiny, capsys) -> None:
    study.main(["--sets", "tiny", "--losses", "ce"])
    committed = [Path(study.__file__).parents[1] / "figures" / file.name for file in study.FIGURES.glob("study*.csv")]
    for file in committed:
        shutil.copy(file, study.FIGURES)
    study.collect(study.RUNS, study.FIGURES, study.TABLES)
    for file in committed:
        rows = set((study.FIGURES / file.name).read_text().splitlines())
        assert set(file.read_text().splitlines()) < rows and any(row.startswith("tiny,ce") for row in rows)
    capsys.readouterr()


def test_thresholds_are_chosen_on_the_validation_images(tiny, monkeypatch) -> None:
    asked = []

    def choose(probs, labels):
        asked.append(labels)
        return 0.3

    monkeypatch.setattr(study, "choose_threshold", choose)
    study.run_one("tiny", "ce", 0)
    wanted = study.labels_of(study.build(tiny), "val")
    assert len(asked) == 2  # as it is, and four views
    for labels in asked:
        assert all(np.array_equal(a, b) for a, b in zip(labels, wanted, strict=True))
    rows = json.loads(file_of("tiny", "ce", 0).read_text())["rows"]
    assert [row["threshold"] for row in rows] == [0.5, 0.5, 0.3, 0.3] * 2


def test_other_settings_are_another_run(tiny, monkeypatch) -> None:
    study.run_one("tiny", "ce", 0)
    before = json.loads(file_of("tiny", "ce", 0).read_text())
    monkeypatch.setitem(SETS, "tiny", replace(tiny, lr=1e-4))
    study.run_one("tiny", "ce", 0)
    after = json.loads(file_of("tiny", "ce", 0).read_text())
    assert after["settings"] != before["settings"] and after["rows"][0]["dice"] != before["rows"][0]["dice"]


def test_losses_of_one_seed_start_from_the_same_weights_and_crops(tiny) -> None:
    made, first = [study.make_learner("tiny", loss, 3) for loss in LOSSES], []
    for learner, _ in made:
        batch = next(iter(learner.train_loader))[:2]
        images, target = learner.augment(*batch, generator=torch.Generator().manual_seed(0))
        first.append((next(learner.model.parameters()), images, target))
    for found in first[1:]:
        assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(found, first[0], strict=True))
    assert len({(str(identity(loss=learner.loss)), path) for learner, path in made}) == len(LOSSES)


def test_names_of_losses_carry_their_strength(tiny) -> None:
    path = study.build(tiny)
    loss = make_loss("both:3", tiny, path, steps=40)
    assert isinstance(loss.terms[0][1], TopologyLoss)
    assert (loss.terms[0][1].strength, loss.terms[0][1].margin, loss.terms[0][1].warm_up) == (3.0, 1.0, 40)
    assert make_loss("topology", tiny, path, steps=40).terms[0][1].strength == tiny.strength
    labels = np.concatenate([label.ravel() for label in study.labels_of(path, "train")])
    share = make_loss("weighted_ce", tiny, path, steps=40).keywords["class_weight"].numpy() * np.bincount(labels)
    assert share[0] == pytest.approx(share[1])
    for name in ("unknown", "ce:3", "topology:", "topology:abc", "both:-1"):
        with pytest.raises(InputError, match="no loss of the study"):
            make_loss(name, tiny, path, steps=40)


def test_weights_by_distance_come_with_the_data_of_the_losses_that_have_them(tiny) -> None:
    made = {name: study.make_learner("tiny", name, 0) for name in (*LOSSES, "both:3")}
    weighted = {name for name, (learner, _) in made.items() if learner.train_loader.dataset.maps == ("weights",)}
    assert weighted == {"border", "forgive", "gaps", "both", "both:3"}
    assert made["both"][1] == made["both:3"][1] == made["gaps"][1] != made["border"][1]
    assert (SETS["yeast"].both, SETS["walls"].both) == ("gaps", "border")
    batches = {name: next(iter(made[name][0].train_loader)) for name in ("ce", "forgive")}
    assert len(batches["ce"]) == 2
    weights = batches["forgive"][2]
    assert 0 <= weights.min() < 0.5 < weights.max()  # nearly nothing at the border
