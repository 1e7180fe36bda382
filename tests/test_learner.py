"""The learner: it learns, resumes bit for bit, predicts by tiles as on the whole, and says what is wrong."""

import itertools
import linecache

import pytest
import torch
from torch import nn

import learner as learner_module
from checks import InputError
from learner import Learner, _faster_format_on_cpu, _name, _Tally, pick_device
from losses import TopologyLoss, cross_entropy
from unet import UNet


class Batches:
    """A loader whose order depends on the epoch alone, as `data.EpochBatches` does."""

    def __init__(self, images, target, size, shuffle=True):
        self.images, self.target, self.size, self.shuffle, self.epoch = images, target, size, shuffle, 0
        self.batch_sampler = self

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return -(-len(self.images) // self.size)

    def __iter__(self):
        order = torch.arange(len(self.images))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.epoch))
        for chosen in order.split(self.size):
            yield self.images[chosen], self.target[chosen]


def discs(n=4, size=32):
    """Images of one bright disc in noise, with their masks."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = torch.randint(8, size - 8, (n, 2, 1, 1), generator=generator)
    target = (((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) < 49).long()
    return target[:, None] + 0.3 * torch.randn(n, 1, size, size, generator=generator), target


def make(folder=None, widths=(4, 8), val=True, **settings):
    torch.manual_seed(1)
    images, target = discs()
    model = UNet(widths=widths, dropout=0.2, **settings.pop("model", {}))
    loaders = Batches(images, target, 2), Batches(images, target, 4, shuffle=False) if val else None
    settings = {"lr": 0.02, "device": "cpu", "precision": "float32", "verbose": False} | settings
    return Learner(model, settings.pop("loss", cross_entropy), *loaders, folder=folder, **settings)


def flip(*tensors, generator):
    return [t.flip(-1) for t in tensors] if torch.rand((), generator=generator) < 0.5 else tensors


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "unpool"])
def test_four_images_are_learnt_by_heart(upsampling):
    learner = make(widths=(8, 16, 16), model={"upsampling": upsampling}, lr=0.01)
    history = learner.fit(25)
    assert history[-1]["train_loss"] < 0.1 * history[0]["train_loss"] and max(r["val_mean_iou"] for r in history) > 0.97


def weights(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("augment", [None, flip])
def test_fault_69_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, cut, augment):
    whole = make(augment=augment)
    whole.fit(4)
    first = make(tmp_path, augment=augment)
    train = first._train_epoch

    def power_cut(epoch, *args):
        if epoch == cut:
            raise KeyboardInterrupt
        return train(epoch, *args)

    monkeypatch.setattr(first, "_train_epoch", power_cut)
    with pytest.raises(KeyboardInterrupt):
        first.fit(4)
    torch.manual_seed(99)  # a new process draws other numbers
    second = make(tmp_path, augment=augment)
    second.fit(4)
    assert without_times(second.history) == without_times(whole.history)
    assert same(weights(whole), weights(second))


def test_fault_70_a_loss_that_counts_its_steps_is_resumed_too(tmp_path):
    settings = {"strength": 0.5, "warm_up": 6, "every": 2}
    whole, first = make(loss=TopologyLoss(**settings)), make(tmp_path, loss=TopologyLoss(**settings))
    whole.fit(3)
    whole_settings = first.settings  # cut off after the first of three epochs
    close = first._close_epoch

    def power_cut(*args):
        close(*args)
        raise KeyboardInterrupt

    first._close_epoch = power_cut
    with pytest.raises(KeyboardInterrupt):
        first.fit(3)
    second = make(tmp_path, loss=TopologyLoss(**settings))
    second.fit(3)
    assert second.settings() == whole_settings() and same(weights(whole), weights(second))


def test_interrupted_in_the_middle_of_an_epoch_the_same_learner_goes_on(monkeypatch):
    whole, cut = make(), make()
    whole.fit(3)
    steps = itertools.count()

    def stops_once(logits, target):
        if next(steps) == 3:  # in the second epoch, after one of its steps changed the weights
            raise KeyboardInterrupt
        return cross_entropy(logits, target)

    stops_once.__name__ = "cross_entropy"
    cut.loss, cut.val_loader, whole.val_loader = stops_once, None, None
    whole = make(val=False)
    whole.fit(3)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(3)
    assert len(cut.history) == 1
    cut.fit(3)
    assert same(weights(whole), weights(cut))


def test_fault_75_a_finished_run_is_not_trained_again_and_more_epochs_go_on(tmp_path):
    make(tmp_path).fit(2)
    again = make(tmp_path)
    before = (tmp_path / "latest.ckpt").stat().st_mtime_ns
    assert len(again.fit(2)) == 2 and (tmp_path / "latest.ckpt").stat().st_mtime_ns == before
    assert [row["epoch"] for row in make(tmp_path).fit(3)] == [1, 2, 3]


@pytest.mark.parametrize("change", [{"lr": 0.03}, {"seed": 5}, {"widths": (4, 4)}, {"augment": flip}])
def test_other_settings_start_over_and_say_which(tmp_path, capsys, change):
    make(tmp_path).fit(2)
    other = make(tmp_path, verbose=True, **change)
    other.fit(1)
    assert len(other.history) == 1 and "settings changed" in capsys.readouterr().out


def test_the_best_epoch_is_left_in_the_model(monkeypatch):
    learner = make()
    values = iter([0.3, 0.9, 0.5])
    seen = []

    def evaluate(loader):
        seen.append(weights(learner))
        return {"mean_iou": next(values)}

    monkeypatch.setattr(learner, "evaluate", evaluate)
    learner.fit(3)
    assert same(seen[1], weights(learner)) and not same(seen[2], weights(learner))


def test_fault_40_nan_stops_before_the_step_and_keeps_the_good_weights():
    learner = make(val=False)
    learner.fit(1)
    good = weights(learner)
    learner.loss = lambda logits, target: cross_entropy(logits, target) * float("nan")
    learner.settings = lambda: learner._state["settings"]
    with pytest.raises(FloatingPointError, match="epoch 2, step 1"):
        learner.fit(2)
    assert same(good, weights(learner))


def test_learning_rate_rises_then_falls_to_zero():
    learner = make(lr=1.0)
    factors = [learner._lr_factor(step / 100, 1 / 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and max(factors) > 0.97 and factors[-1] < 0.001
    assert make(schedule="constant")._lr_factor(0.9, 0.01) == 1.0


def test_evaluation_does_not_depend_on_the_batch_size_nor_change_the_model():
    learner, (images, target) = make(), discs()
    target[0, :5] = 255
    learner.fit(1)
    before = weights(learner)
    results = [learner.evaluate(Batches(images, target, size, shuffle=False)) for size in (1, 3, 4)]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)
    assert same(before, weights(learner))


def test_predictions_are_probabilities():
    probs = make().predict(torch.randn(2, 1, 21, 34))
    assert probs.shape == (2, 2, 21, 34) and probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(2, 21, 34))


@pytest.mark.parametrize("settings", [{"upsampling": "unpool"}, {"upsampling": "bilinear"}, {"skip": "none"}])
@pytest.mark.parametrize("size", [(200, 333), (129, 400)])
def test_fault_46_tiles_equal_the_whole(settings, size):
    learner = make(widths=(2, 4, 4), model=settings)
    image = torch.randn(1, 1, *size)
    torch.testing.assert_close(learner.predict(image, tile=128), learner.predict(image), rtol=0, atol=1e-5)


def test_flip_averaging_makes_the_prediction_symmetric():
    learner, image = make(), torch.randn(1, 1, 16, 24)
    torch.testing.assert_close(learner.predict(image.flip(3), flips=True), learner.predict(image, flips=True).flip(3))


def test_fault_39_images_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN"):
        make().predict(torch.full((1, 1, 8, 8), float("nan")))


def test_further_maps_reach_the_loss():
    images, target = discs()
    seen = []

    def loss(logits, target, weight):
        seen.append(weight.sum().item())
        return cross_entropy(logits, target, weight)

    loader = [(images, target, torch.full(target.shape, 2.0))]
    Learner(UNet(widths=(2,)), loss, loader, device="cpu", verbose=False).fit(1)
    assert seen == [2.0 * target.numel()]


def test_without_data_there_is_one_clear_sentence():
    with pytest.raises(InputError, match="no training data"):
        Learner(UNet(widths=(2,)), cross_entropy, []).fit(1)
    with pytest.raises(InputError, match="loader is empty"):
        _Tally().scores()
    with pytest.raises(InputError, match="schedule"):
        make(schedule="step")


def test_one_live_line(capsys):
    learner = make(verbose=True)
    learner.fit(2)
    assert "2 epochs in" in capsys.readouterr().out.splitlines()[-1]


def test_explain_prints_the_table_and_draws_the_u(capsys):
    import matplotlib.pyplot as plt

    make().explain()
    out = capsys.readouterr().out
    assert "receptive field" in out and "decoder.0.3" in out
    texts = [text.get_text() for text in plt.gcf().axes[0].texts]
    assert "4" in texts and "8" in texts and "32×32" in texts
    plt.close("all")


def test_a_model_of_another_kind_can_be_explained(capsys):
    Learner(nn.Sequential(nn.Conv2d(3, 2, 3)), None).explain()
    assert "Conv2d 3×3" in capsys.readouterr().out


def test_device_is_one_that_exists():
    torch.zeros(1, device=pick_device())


def test_skip_none_and_sum_are_different_runs(tmp_path, capsys):
    make(tmp_path, model={"skip": "none"}).fit(1)
    make(tmp_path, model={"skip": "sum"}, verbose=True).fit(1)
    assert "settings changed (model)" in capsys.readouterr().out


def test_stopped_in_the_first_epoch_the_next_fit_starts_from_the_first_weights():
    whole, cut = make(val=False), make(val=False)
    whole.fit(2)
    steps = itertools.count()

    def stops_once(logits, target):
        if next(steps) == 1:
            raise KeyboardInterrupt
        return cross_entropy(logits, target)

    stops_once.__name__ = "cross_entropy"
    before, cut.loss = weights(cut), stops_once
    with pytest.raises(KeyboardInterrupt):
        cut.fit(2)
    assert same(before, weights(cut))
    cut.fit(2)
    assert same(weights(whole), weights(cut))


def test_training_on_does_not_change_the_kept_state():
    learner = make()
    learner.fit(2)
    learner.fit(4)
    kept = learner._state["optimizer"]["state"][0]["exp_avg"].clone()

    def power_cut(*args):
        raise KeyboardInterrupt

    learner._close_epoch = power_cut
    with pytest.raises(KeyboardInterrupt):
        learner.fit(6)
    assert torch.equal(learner._state["optimizer"]["state"][0]["exp_avg"], kept)


def test_more_epochs_than_planned_are_said(tmp_path, capsys):
    make(tmp_path).fit(2)
    make(tmp_path, verbose=True).fit(3)
    assert "begun as a run of 2 epochs" in capsys.readouterr().out


def test_fault_46_tiles_reach_as_far_as_a_lopsided_field():
    # Sees 100 pixels up and left, none down and right: a margin of half of its 101 pixels would be too narrow.
    net = nn.Sequential(nn.ZeroPad2d((100, 0, 100, 0)), nn.Conv2d(1, 2, 101, bias=False))
    learner = Learner(net, cross_entropy, device="cpu", verbose=False)
    image = torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(learner.predict(image, tile=128), learner.predict(image), atol=1e-5)


def test_group_norm_is_never_cut_into_tiles():
    learner, image = make(model={"norm": "group"}), torch.randn(1, 1, 64, 320)
    torch.testing.assert_close(learner.predict(image, tile=192), learner.predict(image), rtol=0, atol=0)


def test_float64_images_are_predicted():
    assert make().predict(torch.randn(1, 1, 8, 8, dtype=torch.float64)).dtype == torch.float32


def test_another_sampling_is_another_run(tmp_path, capsys):
    first, other = make(tmp_path), make(tmp_path, verbose=True)
    other.train_loader.repeats = 3  # as many batches, other crops
    first.fit(1)
    other.fit(1)
    assert "settings changed (sampling)" in capsys.readouterr().out


def test_an_edited_function_of_the_notebook_is_another_setting():
    names = []
    for factor in ("1", "2"):
        source = f"def augment(x):\n    return {factor} * x\n"
        linecache.cache[f"<cell {factor}>"] = (len(source), None, source.splitlines(True), f"<cell {factor}>")
        namespace = {"__name__": "__main__"}
        exec(compile(source, f"<cell {factor}>", "exec"), namespace)
        names.append(_name(namespace["augment"]))
    assert names[0] != names[1] and all(name.startswith("augment-") for name in names)
    assert _name(cross_entropy) == "cross_entropy"


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.5, "bfloat16"), (0.9, "float32"), (1.5, "float32")])
def test_only_a_clear_lead_chooses_bfloat16(monkeypatch, bfloat16, chosen):
    clock = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, bfloat16]))  # begin, end in each format in turn
    monkeypatch.setattr(learner_module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(learner_module, "_FASTER", {})
    assert _faster_format_on_cpu(UNet(widths=(2,)), torch.zeros(1, 1, 8, 8)) == chosen


def test_changed_settings_start_from_the_first_weights():
    changed, fresh = make(), make(lr=0.01)
    changed.fit(2)
    changed.lr = 0.01
    changed.fit(2)
    fresh.fit(2)
    assert same(weights(fresh), weights(changed))
