"""The tuning of section A1.2 on a tiny set: the plan is carried out, goes on, and opens the test set once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import run
from checks import InputError
from experiments import tuning_study
from experiments.comparison import read_table
from experiments.search_space import LogRange, searched, with_fixed
from experiments.tuning_study import DEFAULT, PLAN, builder, chosen_settings, final_test, make_model, narrowed, winner
from imagesets.yeast import write_yeast


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning_study, "EPOCHS", 2)
    folder = write_yeast(tmp_path / "tiny", num_images=6, height=64, width=64)
    return str(folder)


def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real experiment with 8 crops of an epoch, the smallest nets, and a short range test."""
    small = {"shrink": 4, "width": 4, "levels": 2, "batch": 4}
    monkeypatch.setattr(tuning_study, "DEFAULT", DEFAULT | small)
    original = tuning_study.builder
    monkeypatch.setattr(
        tuning_study, "builder", lambda path, precision="float32", crops=8: original(path, precision, 8)
    )
    monkeypatch.setattr(tuning_study, "fastest_precision", lambda path: "float32")
    search = tuning_study.search

    def short(*arguments: Any, **options: Any) -> Any:
        return search(*arguments, **options, epochs=2, steps=30)

    monkeypatch.setattr(tuning_study, "search", short)


def test_all_steps_are_done_once_and_every_table_is_written(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few_crops(monkeypatch)
    arguments = ["--data", tiny, "--minutes", "5", "--trials", "4", "--seeds", "2"]
    tuning_study.main(arguments)
    assert "4 trials, of which" in capsys.readouterr().out
    tables = {path.stem: read_table(path) for path in Path("figures").glob("*.csv")}
    assert sorted(tables) == [
        f"tuning_{name}" for name in ("confirm", "epochs", "images", "plan", "range", "test", "trials")
    ]
    trials = tables["tuning_trials"]
    assert [row["trial"] for row in trials] == [0, 1, 2, 3] and trials[0]["lr"] == DEFAULT["lr"]
    names = [factor.name for factor in searched(PLAN)]
    assert set(names) < set(trials[0]) and set(names) < set(tables["tuning_confirm"][0])
    assert len(tables["tuning_epochs"]) == sum(row["epochs"] for row in trials)
    candidates = {row["candidate"] for row in tables["tuning_confirm"]}
    assert len(tables["tuning_confirm"]) == 2 * len(candidates) and "default" in candidates
    tested = {row["candidate"] for row in tables["tuning_test"]}
    assert tested == {"default", winner(tables["tuning_confirm"])}
    before = {path.name: path.read_text() for path in Path("figures").glob("*.csv")}
    monkeypatch.setattr(tuning_study.Learner, "_train_epoch", None)  # a second run trains nothing
    tuning_study.main(arguments)
    assert {path.name: path.read_text() for path in Path("figures").glob("*.csv")} == before


def test_a_worker_only_searches(tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few_crops(monkeypatch)
    tuning_study.main(["--data", tiny, "--minutes", "5", "--trials", "1", "--worker", "--storage", "shared.journal"])
    assert Path("shared.journal").exists() and not Path("figures").exists()
    capsys.readouterr()


def test_a_study_of_other_images_is_refused(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_crops(monkeypatch)
    path = tuning_study.prepare(tiny, Path("data"), say=lambda text: None)
    study = tuning_study.open_study("journal", "name")
    study.set_user_attr("data", "others")
    with pytest.raises(InputError, match="other images"):
        tuning_study.search(path, "journal", name="name", minutes=1)


def test_the_test_set_is_opened_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_crops(monkeypatch)
    path = tuning_study.prepare(tiny, Path("data"), say=lambda text: None)
    candidates = {"default": with_fixed(PLAN, tuning_study.DEFAULT)}
    options: dict[str, Any] = {"epochs": 1, "folder": Path("runs"), "record": Path("opened.json")}
    first = final_test(path, tuning_study.builder(path), candidates, seeds=[0, 1], **options)
    assert [row["seed"] for row in first[0]] == [0, 1] and {row["candidate"] for row in first[1]} == {"default"}
    assert final_test(path, None, candidates, seeds=[0, 1], **options) == first  # read, not judged again
    for changed in (
        {"seeds": [0, 2]},
        {"epochs": 2},
        {"candidates": {"default": candidates["default"] | {"lr": 1e-3}}},
    ):
        with pytest.raises(InputError, match="opened before"):
            final_test(path, None, **{"candidates": candidates, "seeds": [0, 1], **options, **changed})


def test_the_score_of_all_images_is_that_of_the_learner(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_crops(monkeypatch)
    path = tuning_study.prepare(tiny, Path("data"), say=lambda text: None)
    learner = tuning_study.builder(path)(with_fixed(PLAN, tuning_study.DEFAULT), 0, None)
    scores = tuning_study.judge_images(learner, path)
    dataset = tuning_study.SegmentationDataset(path, "test")
    assert set(scores) == {"", *dataset.names}
    assert scores[""] == pytest.approx(learner.evaluate(tuning_study.make_loader(dataset, 8))["mean_iou"])


def test_every_searched_factor_reaches_the_training(tiny: str) -> None:
    path = tuning_study.prepare(tiny, Path("data"), say=lambda text: None)
    build, settings = builder(path), with_fixed(PLAN, DEFAULT)
    plain = build(settings, 0, None)
    described = repr(plain.settings())
    assert plain.lr == DEFAULT["lr"] and plain.train_loader.batch_sampler.batch_size == DEFAULT["batch"]
    for factor in searched(PLAN):
        other = next(
            v for v in ((1e-3,) if isinstance(factor.values, LogRange) else factor.values) if v != DEFAULT[factor.name]
        )
        assert repr(build(settings | {factor.name: other}, 0, None).settings()) != described, factor.name
    other = build(settings, 1, None)
    assert repr(other.settings()) != described
    assert other.seed == other.train_loader.dataset.seed == other.train_loader.batch_sampler.seed == 1
    model = make_model(settings | {"levels": 3, "width": 4}, 1, 2)
    assert model.network.widths == (4, 8, 16)


def test_the_plan_holds_the_default_and_names_the_fixed_values() -> None:
    settings = with_fixed(PLAN, DEFAULT)
    assert settings["crop"] == 64 and set(DEFAULT) < set(settings)
    assert all(factor.why for factor in PLAN)


def test_the_range_holds_the_default() -> None:
    rows = [
        {"lr": 10.0**e, "train_loss": loss}
        for e, loss in zip(range(-6, 1), (1, 0.8, 0.5, 0.1, 0.1, 3, 3))
        for _ in range(9)
    ]
    plan = narrowed(rows)
    values = next(factor.values for factor in plan if factor.name == "lr")
    assert values == LogRange(1e-5, DEFAULT["lr"])


def test_candidates_are_the_default_and_the_best_others() -> None:
    def row(score: float, state: str = "complete", **changed: Any) -> dict[str, Any]:
        return DEFAULT | {"state": state, "score": score} | changed

    rows = [
        row(0.9),
        row(0.5, lr=1e-3),
        row(0.7, width=16),
        row(0.99, "pruned", width=4),
        row(0.6, lr=2e-3),
        row(0.1, lr=3e-3),
    ]
    found = chosen_settings(PLAN, rows)
    assert list(found) == ["default", "best 1", "best 2", "best 3"]
    assert [found[name]["width"] for name in found] == [8, 16, 8, 8]
    assert [found[name]["lr"] for name in found] == [5e-3, 5e-3, 2e-3, 1e-3]


def test_rows_of_other_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuning_study.save_rows("test", "a", [{"x": 1}])
    tuning_study.save_rows("test", "b", [{"x": 2}])
    tuning_study.save_rows("test", "a", [{"x": 3}, {"x": 4}])
    assert [row["x"] for row in read_table("figures/tuning_test.csv")] == [2, 3, 4]
    assert tuning_study.load_rows("test", "a") == [{"set": "a", "x": 3}, {"set": "a", "x": 4}]
    assert tuning_study.load_rows("nothing", "a") == []


def test_the_command_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(run, "ensure_environment", lambda arguments: None)
    monkeypatch.setattr(tuning_study, "main", called.append)
    monkeypatch.chdir(tmp_path)
    assert run.main(["tune", "--minutes", "3", "-h"]) == 0
    assert called == [["--minutes", "3", "-h"]] and Path.cwd() == Path(run.__file__).parent


def test_no_password_is_shown() -> None:
    assert tuning_study._shown("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert tuning_study._shown(Path("runs/journal")) == "runs/journal"
