"""The tuning of section A1.2 on a tiny set: the plan is carried out, goes on, and opens the test set once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checks import InputError
from experiments import tuning
from experiments.search import searched, with_fixed
from experiments.statistics import read_table, select
from experiments.tuning import DEFAULT, PLAN, builder, chosen_settings, final_test
from imagesets.yeast import write_yeast


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of six images and two test images; eight crops an epoch, the smallest network, two epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "EPOCHS", 2)
    monkeypatch.setattr(tuning, "DEFAULT", DEFAULT | {"stem": 4, "width": 8, "levels": 2, "batch": 4})
    monkeypatch.setattr(tuning, "EARLIER", [tuning.DEFAULT | {"lr": 5e-5}])
    few = [replace(factor, values=(8,)) if factor.name == "crops" else factor for factor in PLAN]
    monkeypatch.setattr(tuning, "PLAN", few)
    for part, images in (("train", 6), ("test", 2)):
        write_yeast(tmp_path / "tiny" / part, num_images=images, seed=len(part), height=64, width=64)
    return str(tmp_path / "tiny")


def prepared(tiny: str, *changes: Any) -> Path:
    return tuning.prepare(tiny, Path("data"), changes=changes, say=lambda text: None)


def pictures(path: Path, *parts: str) -> set[bytes]:
    """The labels of some parts: they are not normalised, so that files can be compared."""
    return {label.numpy().tobytes() for part in parts for _, label in tuning.SegmentationDataset(path, part)}


def test_the_tuning_never_sees_the_test_images_of_a_set(tiny: str) -> None:
    path, own = prepared(tiny), prepared(tiny, tuning.own_parts)
    assert len(pictures(own, "test")) >= 1 and len(pictures(own, "train", "val", "test")) == 6
    assert not pictures(own, "train", "val", "test") & pictures(path, "test")


def test_all_steps_are_done_once_and_every_table_is_written(tiny, monkeypatch, capsys):
    arguments = ["--data", tiny, "--minutes", "5", "--trials", "4", "--seeds", "2"]
    tuning.main(arguments)
    assert "4 trials, of which" in capsys.readouterr().out
    tables = {path.stem.removeprefix("tuning_"): read_table(path) for path in Path("figures").glob("*.csv")}
    assert sorted(tables) == ["confirm", "images", "plan", "range", "test", "trials"]
    committed = Path(tuning.__file__).parent.parent / "figures"
    for name, rows in tables.items():  # the notebook reads old and new ones alike
        assert list(rows[0]) == list(read_table(committed / f"tuning_{name}.csv")[0]), name
    trials = tables["trials"]
    own = tuning.SegmentationDataset(prepared(tiny, tuning.own_parts), "test")
    assert {row["image"] for row in tables["images"]} == set(own.names)
    assert [row["trial"] for row in trials] == [0, 1, 2, 3]
    assert [row["lr"] for row in trials[:2]] == [DEFAULT["lr"], 5e-5]
    candidates = {row["candidate"] for row in tables["confirm"]}
    best = max(candidates, key=lambda name: sum(row["score"] for row in select(tables["confirm"], candidate=name)))
    assert len(tables["confirm"]) == 2 * len(candidates) and "default" in candidates
    assert {row["candidate"] for row in tables["test"]} == {"default", best}
    before = {path.name: path.read_text() for path in Path("figures").glob("*.csv")}
    monkeypatch.setattr(torch.amp.GradScaler, "step", None)  # a second run trains nothing
    tuning.main(arguments)
    assert {path.name: path.read_text() for path in Path("figures").glob("*.csv")} == before


def test_the_test_set_is_opened_once(tiny: str) -> None:
    path, candidates = prepared(tiny), {"default": with_fixed(tuning.PLAN, tuning.DEFAULT)}
    options: dict[str, Any] = {"candidates": candidates, "seeds": [0, 1], "folder": Path("runs")}
    first = final_test(path, tuning.builder(path), **options)
    assert [row["seed"] for row in first["rows"]] == [0, 1]
    assert {row["candidate"] for row in first["images"]} == {"default"}
    assert final_test(path, None, **options) == first  # read, not trained and judged again
    other = {"default": candidates["default"] | {"lr": 1e-3}}
    for changed in ({"seeds": [0, 2]}, {"candidates": other}):
        with pytest.raises(InputError, match="opened before"):
            final_test(path, None, **options | changed)


def test_the_score_of_all_images_is_that_of_the_learner(tiny: str) -> None:
    path = prepared(tiny)
    learner = tuning.builder(path)(with_fixed(tuning.PLAN, tuning.DEFAULT), 0, None)
    scores, dataset = tuning.judge_images(learner, path), tuning.SegmentationDataset(path, "test")
    assert set(scores) == {"", *dataset.names}
    assert scores[""] == pytest.approx(learner.evaluate(tuning.make_loader(dataset, 8))["mean_iou"])


def test_every_searched_factor_reaches_the_training(tiny: str) -> None:
    build, settings = builder(prepared(tiny)), with_fixed(tuning.PLAN, DEFAULT)
    plain = build(settings, 0, None)
    described = repr(plain.settings())
    assert plain.lr == DEFAULT["lr"] and plain.train_loader.batch_sampler.batch_size == DEFAULT["batch"]
    for factor in searched(PLAN):
        values = (1e-3,) if factor.log else factor.values
        other = next(value for value in values if value != DEFAULT[factor.name])
        assert repr(build(settings | {factor.name: other}, 0, None).settings()) != described, factor.name
    seeded = build(settings, 1, None)
    assert seeded.seed == seeded.train_loader.dataset.seed == seeded.train_loader.batch_sampler.seed == 1
    assert build(settings | {"levels": 3, "width": 4}, 0, None).model.widths == (4, 8, 16)


def test_candidates_are_the_default_and_the_best_others() -> None:
    def row(score: float, state: str = "complete", **changed: Any) -> dict[str, Any]:
        return DEFAULT | {"state": state, "score": score} | changed

    pruned, worst = row(0.99, "pruned", width=4), row(0.1, lr=3e-3)
    found = chosen_settings(PLAN, [row(0.9), row(0.5, lr=1e-3), row(0.7, width=16), pruned, row(0.6, lr=2e-3), worst])
    assert list(found) == ["default", "best 1", "best 2", "best 3"]
    assert [found[name]["width"] for name in found] == [8, 16, 8, 8]
    assert [found[name]["lr"] for name in found] == [5e-3, 5e-3, 2e-3, 1e-3]


def test_rows_of_other_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuning.save_rows("test", "a", [{"x": 1}])
    tuning.save_rows("test", "b", [{"x": 2}])
    tuning.save_rows("test", "a", [{"x": 3}, {"x": 4}])
    assert [row["x"] for row in read_table("figures/tuning_test.csv")] == [2, 3, 4]
