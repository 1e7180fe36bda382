"""The learner: it learns, resumes bit for bit, predicts by tiles as on the whole, and says what is wrong."""

import itertools

import pytest
import torch
from torch import nn
from training.modes import Mode

from checks import InputError
from learner import Learner, pick_device
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


@pytest.mark.parametrize(("shape", "flips"), [((8, 8), False), ((1, 8, 8), True)])
def test_fault_36_images_without_all_four_axes_are_refused_before_they_are_turned_or_cut(shape, flips):
    with pytest.raises(InputError, match="images has shape"):
        make().predict(torch.zeros(shape), flips=flips)


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
        make().evaluate([])
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


def test_changed_settings_start_from_the_first_weights():
    changed, fresh = make(), make(lr=0.01)
    changed.fit(2)
    changed.lr = 0.01
    changed.fit(2)
    fresh.fit(2)
    assert same(weights(fresh), weights(changed))


# ---- faults ----


class Named(Batches):
    """Batches of images with names."""

    names = ("ant", "bee", "cat", "dog")

    @property
    def dataset(self):
        return self

    @property
    def batch_sampler(self):
        return Indices(self)

    @batch_sampler.setter
    def batch_sampler(self, value):
        pass


class Indices:
    def __init__(self, loader):
        self.set_epoch, self.loader = loader.set_epoch, loader

    def __iter__(self):
        return (chosen.flatten().tolist() for chosen, _ in Batches(torch.arange(4), torch.arange(4), 2, False))


def test_fault_40_the_images_of_the_bad_batch_are_named():
    learner, count = make(val=False), itertools.count()
    learner.train_loader = Named(*discs(), 2, False)
    learner.loss = lambda logits, target: cross_entropy(logits, target) * (float("inf") if next(count) == 1 else 1)
    with pytest.raises(
        FloatingPointError, match="step 2; no weight was changed by it.\nImages of this batch: cat, dog"
    ):
        learner.fit(1)


def test_fault_40_without_a_look_at_the_loss_the_step_changes_nothing(monkeypatch):
    # On a GPU nobody reads the loss within an epoch: the optimizer itself must leave out the bad step and all after it.
    learner, changed = make(val=False), []
    count = itertools.count()

    def sometimes_nan(logits, target):
        changed.append(weights(learner))
        return cross_entropy(logits, target) * (float("nan") if next(count) == 1 else 1.0)

    learner.loss, stop = sometimes_nan, learner._stop_if_not_finite
    steps = iter(range(2))
    monkeypatch.setattr(learner, "_stop_if_not_finite", lambda *args: next(steps, None) is None and stop(*args))
    learner.train_loader.size = 1
    learner.train_loader = list(learner.train_loader)[:2] + list(learner.train_loader)[:1]
    steps = iter(range(3))  # the looks within the epoch see nothing
    with pytest.raises(FloatingPointError, match="epoch 1, step 2"):
        learner.fit(1)
    learnt = {name for name, _ in learner.model.named_parameters()}
    first, second, third = ({n: v for n, v in one.items() if n in learnt} for one in changed)
    assert not same(first, second) and same(second, third)


def test_fault_41_a_wrong_label_is_refused_before_the_step():
    learner = make(val=False)
    learner.train_loader.target[1, 0, 0] = 7
    before = weights(learner)
    with pytest.raises(InputError, match="label"):
        learner.fit(1)
    assert same(before, weights(learner))


def test_fault_39_a_bad_image_in_a_batch_is_refused():
    learner = make(val=False)
    learner.train_loader.images[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match="NaN or Inf"):
        learner.fit(1)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_fault_79_a_full_memory_halves_the_batch_and_learns_the_same(monkeypatch, norm, capsys):
    settings = {"model": {"norm": norm}, "val": False, "loss": TopologyLoss(strength=0.1, warm_up=3)}
    whole, halved = make(**settings), make(**settings, verbose=True)
    for learner in (whole, halved):
        learner.train_loader.size, learner.model.dropout.p = 4, 0.0
    halved.loss = TopologyLoss(strength=0.1, warm_up=3)
    whole.fit(2)
    forward = halved.model.forward

    def small_memory(images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(halved.model, "forward", small_memory)
    halved.fit(2)
    assert [row["parts"] for row in halved.history] == [4, 4] and [row["parts"] for row in whole.history] == [1, 1]
    assert "batch in 4 parts, as the memory was full" in capsys.readouterr().out
    assert torch.equal(whole.loss.step, halved.loss.step)  # pieces are not counted as steps
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(halved)[name], atol=2e-3), name
    assert halved.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-3)


def test_fault_79_not_even_one_image_fits():
    learner = make()

    def no_memory(images):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    learner.model.forward = no_memory
    with pytest.raises(InputError, match="does not hold one image"):
        learner.fit(1)
    learner = make()
    learner.model.forward = lambda images: torch.zeros(1, 1) @ images  # another RuntimeError is not hidden
    with pytest.raises(RuntimeError, match="size"):
        learner.fit(1)


def test_fault_71_weights_of_another_architecture_are_refused_with_their_names(tmp_path):
    make(tmp_path).fit(1)
    other = make(tmp_path, widths=(4, 9))
    before = weights(other)
    with pytest.raises(InputError, match="another architecture.*\n.*encoder.1"):
        other.restore()
    assert same(before, weights(other))
    with pytest.raises(InputError, match="no finished epoch"):
        make(tmp_path / "empty").restore()
    with pytest.raises(InputError, match="no finished epoch"):
        make().restore()


def test_the_best_weights_can_be_restored_without_training(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    first.fit(2)
    second.restore()
    assert same(weights(first), weights(second)) and second.history == first.history


def test_fault_73_a_second_run_in_the_folder_is_refused(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    with pytest.raises(InputError, match="Another run"):
        first.fit(1, after_epoch=lambda row: second.fit(1))
    assert len(make(tmp_path).fit(2)) == 2  # the lock is gone


def test_an_exception_after_an_epoch_ends_the_run_and_leaves_it_resumable(tmp_path):
    whole, cut, seen = make(), make(tmp_path), []
    whole.fit(3)

    def stop(row):
        seen.append(row["epoch"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.fit(3, after_epoch=stop)
    again = make(tmp_path)
    again.fit(3, after_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [1, 2, 3] and same(weights(whole), weights(again))


def test_the_mode_of_a_run_is_kept_when_it_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("modes.fastest", lambda *args, **kw: Mode("bfloat16", channels_last=False))
    make(tmp_path, precision="auto").fit(1)
    monkeypatch.setattr("modes.fastest", lambda *args, **kw: pytest.fail("chosen again"))
    again = make(tmp_path, precision="auto")
    again.fit(2)
    assert again.mode == Mode("bfloat16", channels_last=False)
    with pytest.raises(InputError, match="precision"):
        make(precision="half")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_nothing_waits_for_the_gpu_within_an_epoch(monkeypatch, precision):
    learner = make(device="cuda", precision=precision, val=False)
    backward, stop = learner._backward, learner._stop_if_not_finite

    def watched(*args):
        torch.cuda.set_sync_debug_mode("error")
        return backward(*args)

    def end(*args):
        torch.cuda.set_sync_debug_mode("default")
        return stop(*args)

    learner.fit(1)  # the first steps allocate and choose algorithms
    monkeypatch.setattr(learner, "_backward", watched)
    monkeypatch.setattr(learner, "_stop_if_not_finite", end)
    learner.fit(2)


def test_fault_33_a_worker_that_ends_within_a_step_is_one_sentence():
    learner = make(val=False)

    def killed(images):  # PyTorch tells it by a signal, wherever the program is
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    learner.model.forward = killed
    with pytest.raises(InputError, match=r"worker of the data loader has ended[^$]*num_workers=0"):
        learner.fit(1)
