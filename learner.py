"""Train, evaluate, predict, explain: one plain loop around a model, a loss and two loaders.

Everything random in an epoch, order of the samples, crops, augmentation and dropout, follows from (seed, epoch) alone.
So a run that was cut off needs only weights, optimiser and number of its epoch to continue as if nothing had happened:
bit for bit on a CPU, on a GPU up to the rounding of sums whose order is not fixed there.
"""

import contextlib
import copy
import ctypes
import inspect
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

import metrics
import plots
from checks import InputError, check_images, memory_is_full, two_or_more
from networks import inspection
from training import checkpoint, parallel
from training.modelfile import GRID, margin_of, predict_tiled

TILE = 1024  # side of the pieces, in pixels, that large images are cut into
SCHEDULES, PRECISIONS = ("cosine", "constant"), ("auto", "float32", "bfloat16", "float16")
CHOSEN = "model loss augment train_loader val_loader lr weight_decay optimizer schedule seed precision"
STEPS = "_fit _train_epoch _augmented _backward _forward _to_device _lr_factor _close_epoch evaluate"
Batch = Sequence[Tensor]  # images (B, C, H, W), target (B, H, W), and further maps that the loss takes
Row = dict[str, float]


def pick_device() -> torch.device:
    """The fastest device at hand: an NVIDIA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # torchrun gives each process its own
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Learner:
    """A model with all that its training needs.

    Args:
        model: maps images (B, C, H, W) to logits (B, K, H, W).
        loss: called as loss(logits, target, *maps); `maps` is what the loader yields after the target.
        train_loader: yields (images, target, *maps), or mappings in this order; `batch_sampler.set_epoch` is called.
        val_loader: the same, without anything random; None trains without validation.
        lr: highest learning rate; it rises over the first twentieth of the steps and falls along a cosine to 0.
        weight_decay: of AdamW (arXiv:1711.05101).
        optimizer: makes another one, as torch.optim.SGD or a partial of it: optimizer(parameters, lr=lr).
        schedule: "cosine", "constant", or a function of the progress, 0 … 1, whose value is multiplied with `lr`.
        augment: a random transform of the whole batch on its device: augment(images, target, *maps), with generator=…
            if it takes one; or one of torchvision.transforms.v2, which draws once for all images of a batch.
        folder: where a checkpoint is written after every epoch and taken up again; None keeps the run in memory.
        seed: what everything random in the training follows from.
        device: default `pick_device()`.
        precision: "float32", "bfloat16", "float16", or "auto": that of `fastest_precision`.
        verbose: show one line of progress.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[..., Tensor], train_loader: Any = None,
        val_loader: Iterable[Batch] | None = None, *, lr: float = 1e-3, weight_decay: float = 1e-4,
        optimizer: Callable[..., Optimizer] | None = None, schedule: str | Callable[[float], float] = "cosine",
        augment: Callable[..., Sequence[Tensor]] | None = None, folder: str | Path | None = None, seed: int = 0,
        device: torch.device | str | None = None, precision: str = "auto", verbose: bool = True,
    ):  # fmt: skip
        if not (callable(schedule) or schedule in SCHEDULES) or precision not in PRECISIONS:
            raise InputError(f"Learner: {schedule=}, {precision=}; choose one of {SCHEDULES} and of {PRECISIONS}.")
        self.device = torch.device(device) if device is not None else pick_device()
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss, self.train_loader, self.val_loader = loss, train_loader, val_loader
        self.lr, self.weight_decay, self.optimizer = lr, weight_decay, optimizer
        self.schedule, self.augment = schedule, augment
        self.folder = Path(folder) if folder is not None else None
        self.seed, self.precision, self.verbose = seed, precision, verbose
        self.history: list[Row] = []
        self.number_format = precision if precision != "auto" else "float32"
        self._initial: dict[str, Any] | None = None  # state of model and loss before the first step
        self._state: dict[str, Any] | None = None  # the run as of its last epoch, as it is in the checkpoint
        self._settings: dict[str, str] = {}  # as they were when the last `fit` ended
        self._pieces = 1  # into which a batch is cut
        self._train_model: nn.Module = self.model  # averages gradients over all processes, once `fit` has started them

    def fit(self, epochs: int, after_epoch: Callable[[Row], object] = lambda row: None) -> list[Row]:
        """Train until `epochs` epochs are done in all, and leave the model with the best weights seen.

        The best epoch is the one of highest validation mean IoU (the last epoch if there is no validation).  A run
        found in `folder` is continued, a finished one is not trained again, if nothing that determines it has changed:
        choices, code, data, first weights (`settings`).  `after_epoch` gets the row of each epoch (epoch, lr,
        train_loss, …, val_loss, …, seconds), `history` has all.  `InputError` without training data, or if the folder
        is in use or read-only; `FloatingPointError` if the loss is not finite: the best weights so far stay.
        """
        if not self.train_loader:
            raise InputError("Learner.fit: there is no training data; give a train_loader with at least one batch.")
        _keep_memory(1 << 30, 1 << 29)  # for the next step: a tenth of its time on a CPU
        parallel.start()
        with checkpoint.locked(self.folder) if self.folder and parallel.rank() == 0 else contextlib.nullcontext():
            return self._fit(epochs, after_epoch)

    def _fit(self, epochs: int, after_epoch: Callable[[Row], object]) -> list[Row]:
        line = parallel.LiveLine(self.verbose and parallel.rank() == 0)
        self._initial = parallel.from_rank_0(self._first)  # all processes begin, and begin again, with the same weights
        state, note = parallel.from_rank_0(lambda: self._find_state(epochs))
        self.number_format = state["number_format"]
        make = self.optimizer or partial(torch.optim.AdamW, weight_decay=self.weight_decay, fused=True)
        optimizer = make(self.model.parameters(), lr=self.lr)
        scaler = GradScaler(self.device.type, enabled=self.number_format == "float16")
        self._learnt().load_state_dict(state["learnt"])
        if state["history"]:
            optimizer.load_state_dict(_copy_to_cpu(state["optimizer"]))  # a copy: else training would change the state
            scaler.load_state_dict(state["scaler"])
        if self._train_model is self.model:
            self._train_model = parallel.together(self.model, self.device)
        if state["epoch"] < epochs:
            line.show(f"{note}epoch {state['epoch'] + 1}/{epochs} …")
        try:
            for epoch in range(state["epoch"], epochs):
                began = time.perf_counter()
                row = self._train_epoch(epoch, epochs, optimizer, scaler)
                if self.val_loader is not None:
                    row |= {f"val_{name}": value for name, value in self.evaluate(self.val_loader).items()}
                row["seconds"] = time.perf_counter() - began
                self._close_epoch(state, row, optimizer, scaler)
                left = f" · about {row['seconds'] * (epochs - epoch - 1) / 60:.1f} minutes left" * (epoch + 1 < epochs)
                line.show(f"epoch {epoch + 1}/{epochs} · {self._summary(state)}{left}")
                after_epoch(row)
        finally:  # also when the student presses stop, or the loss is not finite
            _keep_memory(1 << 25, 1 << 26)
            self._learnt().load_state_dict(state["best"])
            self.history = list(state["history"])
            self._settings = self.settings() if parallel.rank() == 0 else {}
            if self.history:
                seconds = sum(row["seconds"] for row in self.history)
                name = f"{self.folder.name}: " if self.folder is not None else ""
                took = f"{len(self.history)} epochs in {seconds:.0f} s ({self.number_format} on {self.device.type})"
                took += f", batches in {self._pieces} pieces, as the memory was full" * (self._pieces > 1)
                line.show(f"{note}{name}{took} · {self._summary(state)}")
        return self.history

    def _train_epoch(self, epoch: int, epochs: int, optimizer: Optimizer, scaler: GradScaler) -> Row:
        seed = self.seed * 100_003 + epoch
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)  # augmentation
        if hasattr(getattr(self.train_loader, "batch_sampler", None), "set_epoch"):
            self.train_loader.batch_sampler.set_epoch(epoch)
        self.model.train()
        steps, done = len(self.train_loader), list[tuple[Tensor, Tensor]]()
        for step, batch in enumerate(self.train_loader):
            lr = self.lr * self._lr_factor((epoch * steps + step) / (epochs * steps), 1 / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            done.append(self._backward(self._augmented(self._to_device(batch), generator), scaler))
            if self.device.type != "cuda":  # a GPU is not asked before the end of the epoch
                self._stop_if_not_finite(done[-1:], epoch, step)
            scaler.step(optimizer)
            scaler.update()
        self._stop_if_not_finite(done, epoch)
        return {"epoch": epoch + 1, "lr": lr} | {f"train_{name}": value for name, value in _scores(done).items()}

    def _augmented(self, batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        if self.augment is None:
            return batch
        if "generator" in inspect.signature(getattr(self.augment, "forward", self.augment)).parameters:
            return [*self.augment(*batch, generator=generator)]
        if isinstance(self.augment, nn.Module):  # of torchvision, which must be told what is a mask
            from torchvision.tv_tensors import Image, Mask

            batch = [Image(batch[0]), *map(Mask, batch[1:])]
        return [tensor.as_subclass(Tensor) for tensor in self.augment(*batch)]

    def _backward(self, batch: Batch, scaler: GradScaler) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the batch in the weights; return its loss and its confusion matrix."""
        mine, W = parallel.shared(batch), parallel.world_size()
        if len(batch[0]) < W:
            raise InputError(f"A batch of {len(batch[0])} cannot be shared by {W} processes; take larger batches.")
        counter = self.loss if isinstance(self.loss, nn.Module) else nn.Module()
        counted = copy.deepcopy(counter.state_dict())
        while True:
            self.model.zero_grad(set_to_none=True)
            try:
                losses, counts = [], []
                for images, target, *maps in zip(*(tensor.chunk(self._pieces) for tensor in mine)):
                    counter.load_state_dict(counted)  # a loss that counts its steps counts this batch once
                    logits = self._forward(self._train_model, images)
                    loss = self.loss(logits, target, *maps) * (len(images) / len(mine[0]))
                    scaler.scale(loss * (len(mine[0]) * W / len(batch[0]))).backward()
                    losses.append(loss.detach())
                    counts.append(metrics.confusion_matrix(logits.detach().nan_to_num(), target, threshold=0.0))
                return torch.stack(losses).sum(), torch.stack(counts).sum(dim=0)
            except (RuntimeError, MemoryError) as error:
                if not memory_is_full(error):
                    raise
            if self._pieces >= len(mine[0]):
                raise InputError(f"The memory of {self.device} does not hold one image: take smaller crops or widths.")
            self._pieces *= 2

    def _stop_if_not_finite(self, done: list[tuple[Tensor, Tensor]], epoch: int, step: int = 0) -> None:
        """Raise if a loss of the steps from `step` on is not finite, in any process; `fit` restores good weights."""
        finite = torch.stack(parallel.gathered([torch.stack([loss for loss, _ in done]).cpu()])).isfinite().all(dim=0)
        if not finite.all():
            text = f"The loss is NaN or infinite in epoch {epoch + 1}, step {step + int(finite.int().argmin()) + 1}"
            raise FloatingPointError(f"{text}: lower the learning rate ({self.lr:.2g}), look at images and labels.")

    def _lr_factor(self, progress: float, one_step: float) -> float:
        if self.schedule != "cosine":
            return self.schedule(progress) if callable(self.schedule) else 1.0
        return min(1.0, (progress + one_step) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))  # after a warm-up

    def fastest_precision(self) -> str:
        """The number format in which this model trains fastest here; model and loss stay as they are."""
        if self.device.type == "cuda":  # which of the two it has units for
            return "bfloat16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "float16"
        if self.device.type != "cpu":
            return "float32"
        before = _copy_to_cpu(self._learnt().state_dict())
        batch, seconds = self._to_device(next(iter(self.train_loader))), dict[str, float]()
        self.model.train()
        with torch.random.fork_rng(devices=[]):  # dropout draws here too
            batch = self._augmented(batch, torch.Generator().manual_seed(self.seed))  # may change shapes
            few = [tensor[: 2 * parallel.world_size()] for tensor in batch]  # two a process
            for name in ("bfloat16", "float32"):
                self.number_format = name
                for part in (few, batch):  # the first warms up
                    began = time.process_time()  # what other programs take does not count
                    self._backward(part, GradScaler("cpu", enabled=False))
                    seconds[name] = time.process_time() - began
        self.model.zero_grad(set_to_none=True)
        self._learnt().load_state_dict(before)
        return min(seconds, key=lambda name: seconds[name])

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        lower = self.number_format != "float32"
        with torch.autocast(self.device.type, getattr(torch, self.number_format) if lower else None, enabled=lower):
            output = model(images)
        return output["out"] if isinstance(output, Mapping) else output  # of torchvision

    def settings(self) -> dict[str, str]:
        """What must be the same for a run to be continued: all that determines it (`checkpoint.identity`)."""
        chosen = {name: getattr(self, name) for name in CHOSEN.split()} | {"starting weights": self._first()}
        own = [kind for kind in type(self).__mro__ if issubclass(kind, Learner) and kind is not Learner]
        steps = [getattr(type(self), name) for name in STEPS.split()]
        return checkpoint.identity(self._learnt(), **chosen, training=steps + own)

    def _first(self) -> dict[str, Any]:
        """The state of model and loss before the first step."""
        return self._initial if self._initial is not None else _copy_to_cpu(self._learnt().state_dict())

    def restore(self) -> None:
        """Give the model the best weights of the run in `folder`, without any training."""
        state, note = checkpoint.load(self.folder)
        if state is None:
            raise InputError(f"Learner.restore: no finished epoch in folder={self.folder}. {note}Train it with fit.")
        self._initial, self.history = self._first(), list(state["history"])
        self._learnt().load_state_dict(state["best"])

    def _learnt(self) -> nn.ModuleList:
        """What has a state: the model, and a loss that counts its steps, for its warm-up."""
        return nn.ModuleList([self.model, self.loss] if isinstance(self.loss, nn.Module) else [self.model])

    def _find_state(self, epochs: int) -> tuple[dict[str, Any], str]:
        """The state to start from (a new one, or that of an interrupted run) and what to say about it."""
        settings, state = self.settings(), self._state
        if state is not None:  # objects of its own may have counted while it trained, or cannot be compared
            same = {name: settings.get(name, "") for name, text in self._settings.items() if text[:7] == "unknown"}
            note, before = "", self._settings | same
        else:
            state, note = checkpoint.load(self.folder)
            before = state.get("settings", {}) if state is not None else settings
        if changed := checkpoint.changed(before, settings):
            state, note = None, f"{note}changed since then: {changed}: started over. "
        if state is None:
            chosen = self.fastest_precision() if self.precision == "auto" else self.precision
            state = {"settings": settings, "number_format": chosen, "epochs": epochs, "epoch": 0}
            state |= {"history": [], "best_score": -math.inf, "learnt": self._initial, "best": self._initial}
            self._state = None
        elif self._state is None:
            note += f"continued after epoch {state['epoch']}. " if state["epoch"] < epochs else "found in its folder. "
        if state["epochs"] != epochs:
            note += f"begun as a run of {state['epochs']} epochs: its learning rate differs from one of {epochs}. "
        return dict(state), note

    def _close_epoch(self, state: dict[str, Any], row: Row, optimizer: Optimizer, scaler: GradScaler) -> None:
        """Note the finished epoch in `state`, all at once, and write it to the folder."""
        update = _copy_to_cpu({"learnt": self._learnt().state_dict(), "optimizer": optimizer.state_dict()})
        update |= {"scaler": scaler.state_dict(), "epoch": row["epoch"], "history": [*state["history"], row]}
        score = row.get("val_mean_iou", float(row["epoch"]))
        if not score <= state["best_score"]:
            update |= {"best_score": score, "best_epoch": row["epoch"], "best": update["learnt"]}
        state |= update
        self._state = dict(state)
        if self.folder is not None and parallel.rank() == 0:
            checkpoint.save(self.folder, state)

    def _summary(self, state: dict[str, Any]) -> str:
        last, best = state["history"][-1], state["history"][state["best_epoch"] - 1]
        score = f" · validation mean IoU {best.get('val_mean_iou', 0):.3f} (best, epoch {state['best_epoch']})"
        return f"training loss {last['train_loss']:.3f}" + score * ("val_mean_iou" in best)

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Batch], *, flips: bool = False) -> dict[str, float]:
        """Loss and `metrics.scores` of a whole set, by tiles if need be; `flips` as in `predict`."""
        self.model.eval()
        done = []
        for batch in loader:
            images, target, *maps = parallel.shared(self._to_device(batch))
            if len(images):
                if flips:
                    logits = self.predict(images, flips=True).to(self.device).clamp_min(1e-12).log()
                else:
                    logits = self._by_tiles(lambda part: self._forward(self.model, part), images)
                done.append((self.loss(logits, target, *maps), metrics.confusion_matrix(logits, target, threshold=0.0)))
        return _scores(done)

    @torch.no_grad()
    def predict(self, images: Tensor, *, tile: int = TILE, flips: bool = False) -> Tensor:
        """Class probabilities (B, K, H, W), float32 on the CPU, for normalised images (B, C, H, W) of any size.

        Images larger than `tile` or the memory are cut (`predict_tiled`); `flips` averages over the four reflections.
        """
        check_images(images)
        self.model.eval()
        if flips:
            views = [self.predict(images.flip(axes), tile=tile).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
            return torch.stack(views).mean(dim=0)

        def probs(part: Tensor) -> Tensor:
            return two_or_more(self._forward(self.model, *self._to_device([part]))).float().softmax(dim=1).cpu()

        return self._by_tiles(probs, images, tile)

    def _by_tiles(self, forward: Callable[[Tensor], Tensor], images: Tensor, tile: int = TILE) -> Tensor:
        """`forward` of the images: all at once, else one by one, else in ever smaller tiles, as the memory allows."""
        largest = max(images.shape[2:])
        tiles = [min(tile, largest)]
        while tiles[-1] > 2 * GRID:
            tiles.append(tiles[-1] // 2)
        for at_once, side in [(len(images), tiles[0]), *((1, side) for side in tiles)]:
            margin = margin_of(self.model, images.shape[1]) if side < largest else None
            try:
                parts = images.split(at_once)
                return torch.cat([predict_tiled(forward, part, tile=side, margin=margin) for part in parts])
            except (RuntimeError, MemoryError) as error:
                if not memory_is_full(error):
                    raise
            _keep_memory(1 << 25, 1 << 26)  # else the heap keeps what the convolutions of a tile need
        raise InputError(f"The memory of {self.device} does not hold one tile: take a smaller model or image.")

    def explain(self, input_shape: tuple[int, ...] | None = None) -> None:
        """Print the layer table of the model and draw its U, for (B, C, H, W); default one image of the training."""
        shape = input_shape or (1, *self._to_device(next(iter(self.train_loader)))[0].shape[1:])
        layers = inspection.layer_table(self.model, shape)
        print(inspection.format_table(layers, shape))
        if hasattr(self.model, "encoder") and hasattr(self.model, "decoder"):
            skip, upsampling = getattr(self.model, "skip", "none"), getattr(self.model, "upsampling", "")
            channels = {"input_channels": shape[1], "num_classes": layers[-1].output_shape[1]}
            plots.draw_unet(inspection.stages(self.model, shape), skip=skip, upsampling=upsampling, **channels)

    def _to_device(self, batch: Any) -> list[Tensor]:
        images, *maps = batch.values() if isinstance(batch, Mapping) else batch
        if images.device.type == "cpu":  # on a GPU the check would wait for it
            check_images(images)
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return [images, *(m.to(self.device, non_blocking=True) for m in maps)]


def _scores(done: list[tuple[Tensor, Tensor]]) -> Row:
    """The mean loss of a pixel and all scores of `metrics.scores`, from loss and confusion matrix of each batch."""
    done = parallel.gathered(_copy_to_cpu(done))
    if not done:
        raise InputError("There is no batch to score: the loader is empty. Give one with at least one image.")
    losses, counts = map(torch.stack, zip(*done))  # (N,), (N, K, K)
    pixels = counts.sum(dim=(1, 2))
    return {"loss": float((losses.double() * pixels).sum() / pixels.sum())} | metrics.scores(counts.sum(dim=0))


def _keep_memory(largest: int, in_all: int) -> None:
    """Let glibc keep freed tensors up to so many bytes for later, give back the rest; others cannot be told."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, largest)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, in_all)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)


def _copy_to_cpu(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), value)
