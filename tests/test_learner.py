"""The learner: it learns, resumes bit for bit, predicts by tiles as on the whole, and says what is wrong."""

import copy
import itertools
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn

from checks import InputError
from learner import Learner
from losses import TopologyLoss, cross_entropy
from unet import UNet


class Batches:  # a loader whose order depends on the epoch alone, as `data.EpochBatches` does
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
def test_four_images_are_memorised(upsampling):
    learner = make(widths=(8, 16, 16), model={"upsampling": upsampling}, lr=0.01)
    history = learner.fit(25)
    assert history[-1]["train_loss"] < 0.1 * history[0]["train_loss"] and max(r["val_mean_iou"] for r in history) > 0.97


def power_cut(*args):
    raise KeyboardInterrupt


def weights(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("cut", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, cut):
    settings = {"augment": flip, "loss": TopologyLoss(strength=0.5, warm_up=6)}  # it counts its steps
    whole = make(**copy.deepcopy(settings))
    whole.fit(4)
    first = make(tmp_path, **copy.deepcopy(settings))
    train = first._train_epoch
    monkeypatch.setattr(first, "_train_epoch", lambda epoch, *a: (power_cut if epoch == cut else train)(epoch, *a))
    with pytest.raises(KeyboardInterrupt):
        first.fit(4)
    torch.manual_seed(99)  # a new process draws other numbers
    second = make(tmp_path, **copy.deepcopy(settings))
    second.fit(4)
    assert without_times(second.history) == without_times(whole.history) and same(weights(whole), weights(second))


def test_a_finished_run_is_not_trained_again_and_more_epochs_go_on(tmp_path):
    make(tmp_path).fit(2)
    again = make(tmp_path)
    before = (tmp_path / "latest.ckpt").stat().st_mtime_ns
    assert len(again.fit(2)) == 2 and (tmp_path / "latest.ckpt").stat().st_mtime_ns == before
    assert [row["epoch"] for row in make(tmp_path).fit(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    "change", [{"lr": 0.03}, {"seed": 5}, {"widths": (4, 4)}, {"model": {"skip": "sum"}}, {"augment": flip}]
)
def test_other_settings_start_over_and_say_which(tmp_path, capsys, change):
    make(tmp_path).fit(2)
    other = make(tmp_path, verbose=True, **change)
    other.fit(1)
    assert len(other.history) == 1 and "changed since then: " in capsys.readouterr().out


def test_the_best_epoch_is_left_in_the_model(monkeypatch):
    learner = make()
    values, seen = iter([0.3, 0.9, 0.5]), []
    monkeypatch.setattr(learner, "evaluate", lambda _: seen.append(weights(learner)) or {"mean_iou": next(values)})
    learner.fit(3)
    assert same(seen[1], weights(learner)) and not same(seen[2], weights(learner))


def test_nan_stops_before_the_step_and_keeps_the_good_weights():
    learner = make(val=False)
    learner.fit(1)
    good = weights(learner)
    learner.loss = lambda logits, target: cross_entropy(logits, target) * float("nan")
    learner.settings = lambda: learner._settings
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


def test_predictions_are_probabilities_symmetric_with_flips_and_refused_for_nan():
    learner, images = make(), torch.randn(2, 1, 21, 34)
    with pytest.raises(InputError, match="NaN"):
        learner.predict(images / 0)
    probs = learner.predict(images, flips=True)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(2, 21, 34))
    torch.testing.assert_close(learner.predict(images.flip(3), flips=True), probs.flip(3))
    target = images[:, 0].gt(0).long()
    scores = learner.evaluate([(images, target)], flips=True)
    assert scores["loss"] == pytest.approx(-probs.gather(1, target[:, None]).log().mean().item(), rel=1e-4)
    assert scores["accuracy"] == pytest.approx((probs.argmax(dim=1) == target).float().mean().item())
    assert scores != learner.evaluate([(images, target)])


def test_further_maps_reach_the_loss():
    (images, target), learner, seen = discs(), make(val=False), []
    learner.train_loader = [(images, target, torch.full(target.shape, 2.0))]
    learner.loss = lambda *args: seen.append(args[2].sum()) or cross_entropy(*args)
    learner.fit(1)
    assert seen == [2 * target.numel()]


def test_without_data_there_is_one_clear_sentence():
    with pytest.raises(InputError, match="no training data"):
        Learner(UNet(widths=(2,)), cross_entropy, []).fit(1)
    with pytest.raises(InputError, match="loader is empty"):
        make().evaluate([])
    with pytest.raises(InputError, match="schedule"):
        make(schedule="step")


def test_explain_prints_the_table_and_draws_the_u(capsys):
    import matplotlib.pyplot as plt

    Learner(nn.Sequential(nn.Conv2d(3, 2, 3)), None).explain((1, 3, 9, 9))  # any model has a table
    assert "Conv2d 3×3" in capsys.readouterr().out
    make().explain()
    assert "decoder.0.3" in capsys.readouterr().out
    texts = [text.get_text() for text in plt.gcf().axes[0].texts]
    assert "4" in texts and "8" in texts and "32×32" in texts
    plt.close("all")


def test_stopped_in_the_first_epoch_the_next_fit_starts_from_the_first_weights():
    whole, cut = make(val=False), make(val=False)
    whole.fit(2)
    before, steps = weights(cut), itertools.count()
    cut.loss = lambda logits, target: (power_cut if next(steps) == 1 else cross_entropy)(logits, target)
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
    learner._close_epoch = power_cut
    with pytest.raises(KeyboardInterrupt):
        learner.fit(6)
    assert torch.equal(learner._state["optimizer"]["state"][0]["exp_avg"], kept)


def test_the_best_weights_can_be_restored_and_trained_on_but_not_while_another_run_is_in_the_folder(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    first.fit(2, after_epoch=lambda row: pytest.raises(InputError, second.fit, 1).match("Another run"))
    second.restore()
    assert second.history == first.history and same(weights(first), weights(second)) and len(second.fit(3)) == 3


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


@pytest.mark.parametrize(("slow", "chosen"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_on_a_cpu_the_faster_format_is_chosen_said_and_kept(tmp_path, monkeypatch, capsys, slow, chosen):
    learner, clock = make(tmp_path, precision="auto", verbose=True), [0.0]
    backward = learner._backward

    def takes_time(*args):
        clock[0] += 9 if learner.number_format == slow else 1
        return backward(*args)

    monkeypatch.setattr(learner, "_backward", takes_time)
    monkeypatch.setattr("learner.time.process_time", lambda: clock[0])
    learner.fit(1)
    assert f"({chosen} on cpu)" in capsys.readouterr().out
    again = make(tmp_path, precision="auto")
    monkeypatch.setattr(again, "fastest_precision", lambda: pytest.fail("chosen again"))
    again.fit(2)
    assert again.number_format == chosen


def test_choosing_the_format_changes_neither_model_nor_loss_nor_random_numbers():
    learner = make(precision="auto", loss=TopologyLoss(strength=0.1, warm_up=3))
    before, drawn = weights(learner), torch.get_rng_state()
    assert learner.fastest_precision() in ("float32", "bfloat16")
    assert same(before, weights(learner)) and torch.equal(drawn, torch.get_rng_state())
    assert learner.loss.step == 0 and all(parameter.grad is None for parameter in learner.model.parameters())


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")])
def test_on_a_gpu_its_capability_decides(monkeypatch, capability, chosen):
    # A T4 (7.5) says that it supports bfloat16, but emulates it.
    learner = make()
    learner.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert learner.fastest_precision() == chosen
    learner.device = torch.device("mps")
    assert learner.fastest_precision() == "float32"


def test_bfloat16_is_what_the_forward_pass_runs_in():
    learner, seen = make(precision="bfloat16", val=False), []
    learner.model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    learner.fit(1)
    assert set(seen) == {torch.bfloat16}
    with pytest.raises(InputError, match="precision"):
        make(precision="half")


class Counting:  # a loss that counts its calls in a plain attribute, which no checkpoint holds
    def __init__(self, factor=1.0):
        self.calls, self.factor = 0, factor

    def __call__(self, logits, target):
        self.calls += 1
        return self.factor * cross_entropy(logits, target)


def test_what_the_training_counts_is_no_change_but_what_the_user_sets_is(tmp_path, capsys):
    learner = make(tmp_path, loss=Counting(), verbose=True)
    learner.fit(1)
    learner.fit(2)
    assert learner.loss.calls == 4 + 2 and "changed" not in capsys.readouterr().out  # two steps and a validation each
    make(tmp_path, loss=Counting(), verbose=True).fit(2)
    assert "found in its folder" in capsys.readouterr().out
    learner.loss.factor = 2.0
    assert [row["epoch"] for row in learner.fit(2)] == [1, 2]
    assert "changed since then: loss.factor: started over" in capsys.readouterr().out


def test_own_loaders_weights_and_methods_are_part_of_the_run(tmp_path, capsys):
    class Clipped(Learner):
        def _lr_factor(self, progress, one_step):
            return 0.5

    def changed(name, folder, **given):
        make(folder, val=False).fit(1)
        other = make(folder, val=False, verbose=True)
        for key, value in given.items():
            setattr(other, key, value)
        other.fit(1)
        return f"changed since then: {name}" in capsys.readouterr().out

    images, target = discs()
    dataset, (frozen, touched) = torch.utils.data.TensorDataset(images, target), [make().model for _ in range(2)]
    frozen.head.requires_grad_(False)
    touched.head.weight.data += 1
    assert changed("train_loader.images", tmp_path / "a", train_loader=Batches(images + 1, target, 2))
    assert changed("train_loader", tmp_path / "b", train_loader=[(images, target)])
    assert changed("train_loader", tmp_path / "c", train_loader=torch.utils.data.DataLoader(dataset, 2))
    assert changed("val_loader", tmp_path / "d", val_loader=[(images, target)])
    assert changed("model.head", tmp_path / "e", model=frozen) and changed("starting", tmp_path / "f", model=touched)
    assert changed("training", tmp_path / "g", __class__=Clipped)
    assert not changed("", tmp_path / "h", train_loader=Batches(images.clone(), target, 2))


def test_what_cannot_be_compared_is_trained_anew_and_named(tmp_path, capsys):
    class Streamed(Batches):
        def __init__(self):
            super().__init__(*discs(), 2)
            self.stream = (number for number in range(3))

    for _ in range(2):
        learner = make(tmp_path)
        learner.train_loader, learner.verbose = Streamed(), True
        learner.fit(1)
        learner.fit(2)  # the very same object goes on
    out = capsys.readouterr().out
    assert out.count("train_loader.stream (generator: cannot be compared): started over") == 2  # lines
    assert [row["epoch"] for row in learner.history] == [1, 2]


FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate many bytes.")


def small_memory(learner, monkeypatch, pixels, error=FULL):
    """Let the learner take only so many pixels at once; returns the list of those that it took."""
    forward, taken = learner._forward, []

    def limited(model, images):
        if images[:, 0].numel() > pixels:
            raise error
        taken.append(images[:, 0].numel())
        return forward(model, images)

    monkeypatch.setattr(learner, "_forward", limited)
    return taken


def test_a_full_memory_halves_the_batch_and_learns_the_same(monkeypatch, capsys):
    settings = {"model": {"norm": "group"}, "val": False, "loss": TopologyLoss(strength=0.1, warm_up=3)}
    whole, halved = make(**settings), make(**settings, verbose=True)
    for learner in (whole, halved):
        learner.train_loader.size, learner.model.dropout.p = 4, 0.0
    halved.loss = TopologyLoss(strength=0.1, warm_up=3)
    whole.fit(2)
    small_memory(halved, monkeypatch, 32 * 32, torch.OutOfMemoryError("CUDA out of memory"))
    halved.fit(2)
    assert "batches in 4 pieces, as the memory was full" in capsys.readouterr().out
    assert torch.equal(whole.loss.step, halved.loss.step)  # pieces are not counted as steps
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(halved)[name], atol=2e-3), name
    assert halved.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-3)


def test_not_even_one_image_fits(monkeypatch):
    learner = make()
    small_memory(learner, monkeypatch, 0)
    with pytest.raises(InputError, match="does not hold one image"):
        learner.fit(1)
    learner = make()
    learner.model.forward = lambda images: torch.zeros(1, 1) @ images  # another RuntimeError is not hidden
    with pytest.raises(RuntimeError, match="size"):
        learner.fit(1)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_what_the_memory_does_not_hold_is_judged_and_predicted_by_tiles(monkeypatch, norm):
    learner = make(val=False, model={"norm": norm})
    learner.fit(1)
    images, target = discs(n=2, size=400)
    target[0, :9] = 255
    whole, probs = learner.evaluate([(images, target)]), learner.predict(images)
    taken = small_memory(learner, monkeypatch, 200 * 400)
    assert learner.evaluate([(images, target)]) == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(learner.predict(images), probs)
    assert len(taken) > 4
    small_memory(learner, monkeypatch, 2000)
    for action in (lambda: learner.evaluate([(images, target)]), lambda: learner.predict(images)):
        with pytest.raises(InputError, match="does not hold one tile"):
            action()


def test_small_crops_and_deep_nets_have_a_fastest_format(tmp_path):
    images, target = (tensor[..., 8:24, 8:24] for tensor in discs(n=8))
    for batch in (8, 2):
        model = UNet(widths=(2, 2, 2, 2, 2), norm="batch")  # one pixel is left at its bottom
        learner = Learner(model, cross_entropy, Batches(images, target, batch), device="cpu", verbose=False)
        learner.fit(1)
        assert learner.number_format in ("float32", "bfloat16")


def test_the_format_is_timed_on_augmented_batches_with_two_images_for_each_process(monkeypatch):
    def middle(images, target, generator):  # a classifier of patches: its answer has no size
        return images, target[:, 8:9, 8:9]

    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1))
    learner, timed = Learner(net, cross_entropy, Batches(*discs(n=8), 8), augment=middle, device="cpu"), []
    backward = learner._backward
    monkeypatch.setattr(
        learner, "_backward", lambda batch, scaler: timed.append(batch[1].shape) or backward(batch, scaler)
    )
    monkeypatch.setattr("training.parallel.world_size", lambda: 3)
    monkeypatch.setattr("training.parallel.shared", list)
    learner.fastest_precision()
    assert timed == [(6, 1, 1), (8, 1, 1)] * 2


def test_a_script_brings_its_own_optimiser_schedule_batches_and_models(tmp_path):
    class Dicts:
        def __init__(self):
            self.batches = [dict(zip(("image", "label"), discs(n=4)))] * 3

        def __len__(self):
            return len(self.batches)

        def __iter__(self):
            return iter(self.batches)

    class OfTorchvision(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = UNet(1, 2, (4, 8))

        def forward(self, x):
            return {"out": self.net(x), "aux": x}

    batches, rates = Dicts(), []
    options = {"optimizer": partial(torch.optim.SGD, momentum=0.9), "schedule": lambda progress: 1 - progress}
    for epochs in (2, 4):  # the second goes on with the momentum of the first
        torch.manual_seed(0)
        learner = Learner(OfTorchvision(), cross_entropy, batches, batches, lr=0.1, folder=tmp_path, **options)
        learner.fit(epochs, after_epoch=lambda row: rates.append(round(row["lr"], 4)))
    assert rates == [
        0.0667,
        0.0167,
        0.0333,
        0.0083,
    ]  # last of three steps: 1 − 2/6, 1 − 5/6, 1 − 8/12, 1 − 11/12, times 0.1
    assert learner.history[-1]["train_loss"] < learner.history[0]["train_loss"]
    assert Learner(OfTorchvision(), cross_entropy, batches, folder=tmp_path).settings() != learner.settings()


def test_a_transform_of_torchvision_is_told_what_is_a_mask(monkeypatch):
    class Image(torch.Tensor):
        pass

    class Mask(torch.Tensor):
        pass

    class Flip(nn.Module):  # as those of v2 do: a tensor that is not called a mask would stay as it is
        def forward(self, *tensors):
            return [t.as_subclass(torch.Tensor).flip(-1).as_subclass(type(t)) for t in tensors if type(t) in kinds]

    def as_kind(tensor, kind):
        return tensor.as_subclass(kind)

    kinds = Image, Mask
    for name in ("torchvision", "torchvision.tv_tensors"):  # whose real one may be missing here
        stub = ModuleType(name)
        stub.__file__, stub.Image, stub.Mask = "site-packages", *(partial(as_kind, kind=kind) for kind in kinds)
        monkeypatch.setitem(sys.modules, name, stub)
    (images, target), seen = discs(n=4), []

    class Own(nn.Module):  # not of torchvision: it takes a generator
        def forward(self, images, target, generator):
            return images.flip(-1), target.flip(-1)

    for augment in (Flip(), Own(), lambda images, target: (images.flip(-1), target.flip(-1))):
        learner = Learner(UNet(1, 2, (4,)), cross_entropy, [(images, target)], augment=augment, verbose=False)
        learner.loss = lambda logits, labels: seen.append(labels) or cross_entropy(logits, labels)
        learner.fit(1)
        assert type(seen[-1]) is torch.Tensor and torch.equal(seen[-1].cpu(), target.flip(-1))
