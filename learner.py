"""Train, evaluate, predict, explain: one plain loop around a model, a loss and two loaders.

The loop is forward, loss, backward, stop if the loss is not finite, step.  Everything random in an epoch follows from
(seed, epoch) alone: the order of the samples, their crops, the augmentation, dropout.  So a run that was cut off needs
only its weights, its optimiser and the number of its epoch to continue as if nothing had happened: bit for bit on a
CPU, on a GPU up to the rounding of sums whose order is not fixed there.

Within an epoch the host never waits for a GPU: losses and counts stay on the device until its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import metrics
import plots
from checks import IGNORE_INDEX, InputError, check_images, two_or_more
from networks import inspection
from training import checkpoint, parallel
from training.modelfile import margin_of, predict_tiled

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
Batch = Sequence[Tensor]  # images (B, C, H, W), target (B, H, W), and further maps that the loss takes
Row = dict[str, float]


class Augment(Protocol):
    """A random transform of a whole batch on its device: returns as many tensors as it was given."""

    def __call__(self, *tensors: Tensor, generator: torch.Generator) -> Sequence[Tensor]: ...


def set_seed(seed: int) -> None:
    """Make PyTorch draw the same numbers in every run: call it right before a model is built."""
    torch.manual_seed(seed)


def pick_device() -> torch.device:
    """The fastest device at hand: an NVIDIA GPU, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Learner:
    """A model with all that its training needs.

    Args:
        model: maps images (B, C, H, W) to logits (B, K, H, W).
        loss: called as loss(logits, target, *maps); `maps` is what the loader yields after the target.
        train_loader: yields batches (images, target, *maps); with `batch_sampler.set_epoch` if its order is random.
        val_loader: the same, without anything random; None trains without validation.
        lr: highest learning rate; it rises over the first twentieth of the steps and falls along a cosine to 0.
        weight_decay: of AdamW (arXiv:1711.05101).
        schedule: "cosine", or "constant" for the learning rate as it is.
        augment: a random transform of the whole batch on its device.
        folder: where a checkpoint is written after every epoch and taken up again; None keeps the run in memory.
        seed: what everything random in the training follows from.
        device: default `pick_device()`.
        precision: "float32", "bfloat16", "float16", or "auto": that of `fastest_precision`.
        verbose: show one line of progress.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        train_loader: Any = None,
        val_loader: Iterable[Batch] | None = None,
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: str = "cosine",
        augment: Augment | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        precision: str = "auto",
        verbose: bool = True,
    ):
        if schedule not in SCHEDULES or precision not in PRECISIONS:
            choices = f"choose one of {SCHEDULES} and of {PRECISIONS}."
            raise InputError(f"Learner: schedule={schedule!r}, precision={precision!r}; {choices}")
        self.device = parallel.local_device(torch.device(device) if device is not None else pick_device())
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss, self.train_loader, self.val_loader = loss, train_loader, val_loader
        self.lr, self.weight_decay, self.schedule, self.augment = lr, weight_decay, schedule, augment
        self.folder = Path(folder) if folder is not None else None
        self.seed, self.precision, self.verbose = seed, precision, verbose
        self.history: list[Row] = []
        self.number_format = precision if precision != "auto" else "float32"
        self._parts = 1  # into which a batch is cut
        self._model_hash = model_hash(model)
        self._initial: Any = None  # state of model and loss before the first step
        self._state: dict[str, Any] | None = None  # the run as of its last epoch, as it is in the checkpoint
        self._train_model: nn.Module = self.model  # averages gradients over all processes, once `fit` has started them

    # ---- training ---------------------------------------------------------------------------------------------------

    def fit(self, epochs: int, after_epoch: Callable[[Row], object] | None = None) -> list[Row]:
        """Train until `epochs` epochs are done in all, and leave the model with the best weights seen.

        The best epoch is the one of highest validation mean IoU (the last epoch if there is no validation).  A run
        found in `folder` with the same settings is continued, a finished one is not trained again.  If the memory
        does not hold a batch, its halves (quarters, …) follow each other and their gradients are added up.

        `after_epoch` gets the row of each finished epoch: epoch, lr, train_loss, train_accuracy, …, val_loss, …,
        seconds, parts (into how many pieces a batch is cut).  `history` is the list of all rows.

        Raises:
            InputError: if there is no training data, another run uses the folder, or it cannot be written.
            FloatingPointError: if the loss is not finite; the best weights so far stay.
        """
        if not self.train_loader:
            raise InputError("Learner.fit: there is no training data; give a train_loader with at least one batch.")
        _keep_freed_memory()
        parallel.start()
        if self.folder is None or parallel.rank() > 0:
            return self._fit(epochs, after_epoch, "")
        with checkpoint.locked(self.folder) as warning:
            return self._fit(epochs, after_epoch, warning)

    def _fit(self, epochs: int, after_epoch: Callable[[Row], object] | None, note: str) -> list[Row]:
        line = parallel.LiveLine(self.verbose and parallel.rank() == 0)
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}
        optimizer = torch.optim.AdamW(self.model.parameters(), **options)  # fused: one call for all weights
        state, found = self._resume(optimizer, epochs)
        note += found
        if self._train_model is self.model:
            self._train_model = parallel.together(self.model, self.device)
        if state["epoch"] < epochs:
            line.show(f"{note}epoch {state['epoch'] + 1}/{epochs} …")
        scaler = GradScaler(self.device.type, enabled=self.number_format == "float16")
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        try:
            for epoch in range(state["epoch"], epochs):
                began = time.perf_counter()
                row = self._train_epoch(epoch, epochs, optimizer, scaler)
                if self.val_loader is not None:
                    row |= {f"val_{name}": value for name, value in self.evaluate(self.val_loader).items()}
                row |= {"seconds": time.perf_counter() - began, "parts": self._parts}
                self._close_epoch(state, row, optimizer, scaler)
                line.show(f"epoch {epoch + 1}/{epochs} · {self._summary(state)}")
                if after_epoch is not None:
                    after_epoch(row)
        finally:  # also when the student presses stop, or the loss is not finite
            self.model.load_state_dict(state["best_model"] if state["history"] else self._initial[0])
            self.history = list(state["history"])
            line.show(note + self._summary(state, finished=True))
        return self.history

    def _train_epoch(self, epoch: int, epochs: int, optimizer: Optimizer, scaler: GradScaler) -> Row:
        seed = self.seed * 100_003 + epoch
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)  # augmentation
        if hasattr(getattr(self.train_loader, "batch_sampler", None), "set_epoch"):
            self.train_loader.batch_sampler.set_epoch(epoch)
        self.model.train()
        steps, tally = len(self.train_loader), _Tally()
        losses: list[Tensor] = []
        for step, batch in enumerate(self.train_loader):
            lr = self.lr * self._lr_factor((epoch * steps + step) / (epochs * steps), 1 / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            images, target, *maps = self._to_device(batch)
            if self.augment is not None:
                images, target, *maps = self.augment(images, target, *maps, generator=generator)
            pieces = self._backward([images, target, *maps], scaler)
            losses.append(torch.stack([loss for loss, _, _ in pieces]).sum())
            if self.device.type != "cuda":  # a GPU is not asked before the end of the epoch
                self._stop_if_not_finite(losses[-1:], epoch, step)
            scaler.step(optimizer)
            scaler.update()
            for piece in pieces:
                tally.add(*piece)
        self._stop_if_not_finite(losses, epoch)
        return {"epoch": epoch + 1, "lr": lr} | {f"train_{name}": value for name, value in tally.scores().items()}

    def _backward(self, batch: Batch, scaler: GradScaler) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Leave the gradient of the batch in the weights; return loss, logits and target of each of its pieces."""
        mine = parallel.shared(batch)
        weight = parallel.weight_of_share(len(batch[0]))
        counters = {name: value.clone() for name, value in (self._loss_state() or {}).items()}
        while True:
            self.model.zero_grad(set_to_none=True)
            try:
                pieces = []
                for images, target, *maps in zip(*(tensor.chunk(self._parts) for tensor in mine)):
                    self._load_loss(counters)  # a loss that counts its steps counts this batch once
                    with self.autocast():
                        logits = self._train_model(images)
                    loss = self.loss(logits, target, *maps)
                    scaler.scale(loss * (len(images) / len(mine[0]) * weight)).backward()
                    pieces.append((loss.detach(), logits.detach(), target))
                return pieces
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise  # on a CPU PyTorch has no class for a full memory, only a message
            self._cut_batch(len(mine[0]))

    def _cut_batch(self, size: int) -> None:
        """The memory was full: take the batch in twice as many pieces from now on."""
        if self._parts >= size or parallel.world_size() > 1:
            raise InputError(
                f"The memory of {self.device} does not hold {'one image' if self._parts >= size else 'a share'} "
                f"of the batch of {size}.\nTake a smaller crop, a smaller batch, or a model with smaller widths."
            )
        self._parts = min(2 * self._parts, size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _stop_if_not_finite(self, losses: list[Tensor], epoch: int, step: int = 0) -> None:
        """Raise if a loss of the steps from `step` on is not finite, in any process; `fit` restores good weights."""
        finite = torch.isfinite(parallel.total(torch.stack(losses)))
        if finite.all():
            return
        step += int(finite.int().argmin())
        names = ", ".join(_image_names(self.train_loader, step)[:16])
        raise FloatingPointError(
            f"The loss became NaN or infinite in epoch {epoch + 1}, step {step + 1}; the weights before it stay."
            + (f"\nImages of this batch: {names}." if names else "")
            + f"\nUse a smaller learning rate (now {self.lr:.2g}) or look at these images and labels."
        )

    def _lr_factor(self, progress: float, one_step: float) -> float:
        if self.schedule == "constant":
            return 1.0
        warm_up = min(1.0, (progress + one_step) / 0.05)
        return warm_up * 0.5 * (1 + math.cos(math.pi * progress))

    # ---- the number format ------------------------------------------------------------------------------------------

    def fastest_precision(self) -> str:
        """The number format in which this model trains fastest here; model and loss stay as they are.

        An NVIDIA GPU has units for bfloat16 from capability 8 on, older ones for float16.  Some CPUs emulate bfloat16.
        """
        if self.device.type == "cuda":
            return "bfloat16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "float16"
        if self.device.type != "cpu":
            return "float32"
        before, chosen = _copy_to_cpu([self.model.state_dict(), self._loss_state()]), self.number_format
        batch, seconds = self._to_device(next(iter(self.train_loader))), {"float32": math.inf, "bfloat16": math.inf}
        self.model.train()
        with torch.random.fork_rng(devices=[]):  # dropout draws here too
            for name in (*seconds, *seconds):
                self.number_format = name
                began = time.process_time()  # what other programs take does not count
                self._backward(batch, GradScaler("cpu", enabled=False))
                seconds[name] = min(seconds[name], time.process_time() - began)
        self.number_format = chosen
        self.model.zero_grad(set_to_none=True)
        self.model.load_state_dict(before[0])
        self._load_loss(before[1])
        return min(seconds, key=lambda name: seconds[name])

    def autocast(self) -> torch.autocast:
        """The context in which the forward pass runs in `number_format`."""
        lower = self.number_format != "float32"
        return torch.autocast(self.device.type, getattr(torch, self.number_format) if lower else None, enabled=lower)

    # ---- the run as it lies in memory and in the checkpoint ---------------------------------------------------------

    def _resume(self, optimizer: Optimizer, epochs: int) -> tuple[dict[str, Any], str]:
        """The state to start from (a new one, or that of an interrupted run) and what to say about it."""
        if self._initial is None:
            own = _copy_to_cpu([self.model.state_dict(), self._loss_state()])
            self._initial = parallel.from_rank_0(own)  # all processes begin, and begin again, with the same weights
        state, note = parallel.from_rank_0(self._find_state(epochs) if parallel.rank() == 0 else None)
        self.number_format, self._parts = state["number_format"], state["parts"]
        if state["epoch"] == 0:
            self.model.load_state_dict(self._initial[0])
            self._load_loss(self._initial[1])
        else:
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(_copy_to_cpu(state["optimizer"]))  # a copy: else training would change the state
            self._load_loss(state["loss"])
        return dict(state), note

    def _find_state(self, epochs: int) -> tuple[dict[str, Any], str]:
        settings, state, note = self.settings(), self._state, ""
        if state is None and self.folder is not None:
            state, note = checkpoint.load(self.folder)
        if state is not None and state["settings"] != settings:
            changed = [key for key in settings if state["settings"].get(key) != settings[key]]
            note, state = f"{note}settings changed ({', '.join(changed)}): started over. ", None
        if state is None:
            self._parts = 1
            chosen = self.fastest_precision() if self.precision == "auto" else self.precision
            state = {"settings": settings, "epochs": epochs, "epoch": 0, "history": [], "scaler": None}
            return state | {"number_format": chosen, "parts": self._parts}, note
        if self._state is None:
            note += f"continued after epoch {state['epoch']}. " if state["epoch"] < epochs else "trained before. "
        if state["epochs"] != epochs:
            note += f"begun as a run of {state['epochs']} epochs: its learning rate differs from one of {epochs}. "
        return state, note

    def _close_epoch(self, state: dict[str, Any], row: Row, optimizer: Optimizer, scaler: GradScaler) -> None:
        """Note the finished epoch in `state`, all at once, and write it to the folder."""
        score, model = row.get("val_mean_iou", float(row["epoch"])), _copy_to_cpu(self.model.state_dict())
        update = {"model": model, "optimizer": _copy_to_cpu(optimizer.state_dict()), "scaler": scaler.state_dict()}
        update |= {"loss": _copy_to_cpu(self._loss_state()), "parts": self._parts}
        update |= {"epoch": row["epoch"], "history": [*state["history"], row]}
        if not state["history"] or not score <= state["best_score"]:
            update |= {"best_score": score, "best_epoch": row["epoch"], "best_model": model}
        state |= update
        self._state = dict(state)
        if self.folder is not None and parallel.rank() == 0:
            checkpoint.save(self.folder, state)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        plain = {name: getattr(self, name) for name in ("lr", "weight_decay", "schedule", "seed", "precision")}
        names = {"model": self._model_hash, "loss": name_of(self.loss), "augment": name_of(self.augment)}
        return names | plain | data_settings(self.train_loader)

    def restore(self) -> None:
        """Give the model the best weights of the run in `folder`, without any training."""
        state, note = checkpoint.load(self.folder) if self.folder is not None else (None, "")
        if state is None:
            raise InputError(f"Learner.restore: no finished epoch in folder={self.folder}. {note}Train it with fit.")
        self.model.load_state_dict(state["best_model"])
        self.history = list(state["history"])

    def _loss_state(self) -> dict[str, Any] | None:
        return self.loss.state_dict() if isinstance(self.loss, nn.Module) else None

    def _load_loss(self, state: dict[str, Any] | None) -> None:
        """Set a loss back to a state: it may count steps, for its warm-up."""
        if isinstance(self.loss, nn.Module) and state:
            self.loss.load_state_dict(state)

    def _summary(self, state: dict[str, Any], finished: bool = False) -> str:
        rows = state["history"]
        if not rows:
            return "no epoch is finished"
        seconds = sum(row["seconds"] for row in rows)
        text = f"training loss {rows[-1]['train_loss']:.3f}"
        if "val_mean_iou" in rows[-1]:
            best = rows[state["best_epoch"] - 1]
            text += f" · validation mean IoU {best['val_mean_iou']:.3f} (best, epoch {state['best_epoch']})"
        if self._parts > 1:
            text += f" · batch in {self._parts} parts, as the memory was full"
        if not finished:
            return text
        name = f"{self.folder.name}: " if self.folder is not None else ""
        return f"{name}{len(rows)} epochs in {seconds:.0f} s ({self.number_format} on {self.device.type}) · {text}"

    # ---- evaluation and prediction ----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Loss and all scores of `metrics.scores` over a whole set, from one confusion matrix."""
        self.model.eval()
        tally = _Tally()
        for batch in loader:
            mine = parallel.shared(self._to_device(batch))
            for images, target, *maps in zip(*(tensor.chunk(self._parts) for tensor in mine if len(tensor))):
                logits = self._forward(images)
                tally.add(self.loss(logits, target, *maps), logits, target)
        return tally.scores()

    @torch.no_grad()
    def predict(self, images: Tensor, *, tile: int = 1024, flips: bool = False) -> Tensor:
        """Class probabilities (B, K, H, W), float32 on the CPU, for normalised images (B, C, H, W) of any size.

        Images larger than `tile` are cut (`predict_tiled`); `flips` averages over the four reflections of the image.
        """
        check_images(images)
        self.model.eval()
        if flips:
            axes: list[list[int]] = [[], [2], [3], [2, 3]]
            views = [self.predict(images.flip(a), tile=tile).flip(a) for a in axes]
            return torch.stack(views).mean(dim=0)
        margin = margin_of(self.model, images.shape[1]) if max(images.shape[2:]) > tile else None
        return predict_tiled(self._probs, images, tile=tile, margin=margin)

    def _probs(self, images: Tensor) -> Tensor:
        (images,) = self._to_device([images])
        return two_or_more(self._forward(images)).float().softmax(dim=1).cpu()

    # ---- explanation ------------------------------------------------------------------------------------------------

    def explain(self, input_shape: tuple[int, ...] | None = None) -> None:
        """Print the layer table of the model and draw its U, for (B, C, H, W); default one image of the training."""
        if input_shape is None:
            channels = next(p for p in self.model.parameters() if p.ndim == 4).shape[1]
            first = next(iter(self.train_loader))[0] if self.train_loader is not None else None
            input_shape = (1, *first.shape[1:]) if first is not None else (1, channels, 256, 256)
        layers = inspection.layer_table(self.model, input_shape)
        print(inspection.format_table(layers, input_shape))
        if hasattr(self.model, "encoder") and hasattr(self.model, "decoder"):
            plots.draw_unet(
                inspection.stages(self.model, input_shape),
                input_channels=input_shape[1],
                num_classes=layers[-1].output_shape[1],
                skip=getattr(self.model, "skip", "none"),
                upsampling=getattr(self.model, "upsampling", ""),
            )

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _to_device(self, batch: Batch) -> list[Tensor]:
        images, *maps = batch
        if images.device.type == "cpu":  # on a GPU the check would wait for it
            check_images(images)
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return [images, *(m.to(self.device, non_blocking=True) for m in maps)]

    def _forward(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.model(images)


class _Tally:
    """Sums loss and confusion matrix over the batches of an epoch, on their device until the end."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.pixels: list[Tensor] = []
        self.confusion: Tensor | None = None

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count one batch: its mean loss, logits (B, K, H, W), target (B, H, W)."""
        confusion = metrics.confusion_matrix(logits, target)
        self.losses.append(loss.detach())
        self.pixels.append((target != IGNORE_INDEX).sum())
        self.confusion = confusion if self.confusion is None else self.confusion + confusion

    def scores(self) -> Row:
        """The mean loss of a pixel and all scores of `metrics.scores`, over the batches of all processes."""
        if parallel.world_size() > 1:  # rank 0 has one image of each batch at least, the others may have none
            classes = parallel.from_rank_0(None if self.confusion is None else len(self.confusion))
            self.confusion = torch.zeros(classes, classes).long() if self.confusion is None else self.confusion
        if self.confusion is None:
            raise InputError("There is no batch to score: the loader is empty. Give one with at least one image.")
        # In float64 on the CPU: Apple's GPU has none.
        nothing = torch.zeros(0, dtype=torch.float64)
        losses, pixels = (torch.stack(v).cpu().double() if v else nothing for v in (self.losses, self.pixels))
        loss, pixels = parallel.total(torch.stack([(losses * pixels).sum(), pixels.sum()]))
        return {"loss": float(loss / pixels)} | metrics.scores(parallel.total(self.confusion))


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of asking Linux anew: a tenth of a step on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: tensors up to 1 GiB come from the heap …
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: … which does not shrink


def _copy_to_cpu(value: Any) -> Any:
    """A copy of a nested state, which later training steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(entry) for key, entry in value.items()}
    return [_copy_to_cpu(entry) for entry in value] if isinstance(value, (list, tuple)) else value


# ---- what a run is made of: so that only the same one is continued --------------------------------------------------


def name_of(function: Any) -> str:
    """What a loss or augmentation is called, with its settings.

    >>> name_of(functools.partial(round, ndigits=2)), name_of(nn.Identity()), name_of(None)
    ('round(ndigits=2)', 'Identity()', 'NoneType')
    """
    if isinstance(function, functools.partial):
        settings = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        return f"{name_of(function.func)}({', '.join(f'{k}={v}' for k, v in sorted(settings.items()))})"
    if getattr(function, "__module__", "") == "__main__" and inspect.isfunction(function):
        with contextlib.suppress(OSError):  # a function of the notebook may have been edited: its text counts
            text = inspect.getsource(function)
            return f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return getattr(function, "__name__", None) or (
        repr(function) if isinstance(function, nn.Module) else type(function).__name__
    )


def model_hash(model: nn.Module) -> str:
    """A short hash of the architecture as `print(model)` shows it."""
    return hashlib.sha256(repr(model).encode()).hexdigest()[:16]


def data_settings(loader: Any) -> dict[str, Any]:
    """What a loader yields and in which order: number of batches, sampling, transform, content."""
    dataset = getattr(loader, "dataset", None)
    sampler = getattr(loader, "batch_sampler", None)
    drawn = [getattr(sampler, name, None) for name in ("batch_size", "shuffle", "seed", "repeats")]
    drawn += [getattr(dataset, name, None) for name in ("part", "crop", "maps", "seed")]
    return {
        "batches": len(loader),
        "sampling": str(drawn),
        "transform": name_of(getattr(dataset, "transform", None)),
        "data": str(getattr(dataset, "fingerprint", None)),
    }


def _image_names(loader: Any, step: int) -> list[str]:
    """The names of the images in batch number `step` of the loader's epoch; nothing where they have none."""
    names, batches = getattr(getattr(loader, "dataset", None), "names", None), getattr(loader, "batch_sampler", None)
    if names is None or batches is None:
        return []
    draws = list(batches)[step]
    return [names[draw[1] if isinstance(draw, tuple) else draw] for draw in draws]
