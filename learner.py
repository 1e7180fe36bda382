"""Train, evaluate, predict, explain: one plain loop around a model, a loss and two loaders.

The loop is forward, loss, stop if it is not finite, backward, step.  Everything random in an epoch follows from
(seed, epoch) alone: the order of the samples, their crops, the augmentation, dropout.  So a run that was cut off needs
only its weights, its optimiser and the number of its epoch to continue as if nothing had happened: bit for bit on a
CPU, on a GPU up to the rounding of sums whose order is not fixed there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import checkpoint
import inspection
import metrics
import plots
from checks import IGNORE_INDEX, InputError, check_images, two_or_more
from receptive_field import reach

Batch = Sequence[Tensor]  # images (B, C, H, W), target (B, H, W), and further maps that the loss takes


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
        precision: "float32", "bfloat16", "float16", or "auto": the faster one on this device.
        verbose: show one line of progress.

    Attributes:
        history: one dict for each epoch; see `fit`.
        active_precision: the number format that is used, once `fit` has chosen it.
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
        if schedule not in ("cosine", "constant"):
            raise InputError(f"Learner: schedule={schedule!r}; choose 'cosine' or 'constant'.")
        self.device = torch.device(device) if device is not None else pick_device()
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss, self.train_loader, self.val_loader = loss, train_loader, val_loader
        self.lr, self.weight_decay, self.schedule, self.augment = lr, weight_decay, schedule, augment
        self.folder = Path(folder) if folder is not None else None
        self.seed, self.precision, self.verbose = seed, precision, verbose
        self.history: list[dict[str, float]] = []
        self._initial: Any = None  # state of model and loss before the first step
        self._state: dict[str, Any] | None = None  # the run as of its last epoch, as it is in the checkpoint
        self.active_precision = precision if precision != "auto" else "float32"  # until `fit` has chosen

    # ---- training ---------------------------------------------------------------------------------------------------

    def fit(self, epochs: int) -> list[dict[str, float]]:
        """Train until `epochs` epochs are done in all, and leave the model with the best weights seen.

        The best epoch is the one of highest validation mean IoU (the last epoch if there is no validation).  A run
        found in `folder` with the same settings is continued, a finished one is not trained again.

        Returns:
            history: a dict for each epoch with epoch, lr, train_loss, train_accuracy, …, val_loss, …, seconds.

        Raises:
            InputError: if there is no training data.
            FloatingPointError: if the loss is not finite; the best weights so far stay.
        """
        if self.train_loader is None or len(self.train_loader) == 0:
            raise InputError("Learner.fit: there is no training data; give a train_loader with at least one batch.")
        line = _LiveLine(self.verbose)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        state, note = self._resume(optimizer, epochs)
        if state["epoch"] < epochs:
            line.show(f"{note}epoch {state['epoch'] + 1}/{epochs} …")
        self.active_precision = state["precision"]
        scaler = GradScaler(self.device.type, enabled=state["precision"] == "float16")
        if state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        try:
            for epoch in range(state["epoch"], epochs):
                began = time.perf_counter()
                row = self._train_epoch(epoch, epochs, optimizer, scaler)
                if self.val_loader is not None:
                    row |= {f"val_{name}": value for name, value in self.evaluate(self.val_loader).items()}
                row["seconds"] = time.perf_counter() - began
                self._close_epoch(state, row, optimizer, scaler)
                line.show(f"epoch {epoch + 1}/{epochs} · {self._summary(state)}")
        finally:  # also when the student presses stop, or the loss is not finite
            self.model.load_state_dict(state["best_model"] if state["history"] else self._initial[0])
            self.history = list(state["history"])
            line.show(note + self._summary(state, finished=True))
        return self.history

    def _train_epoch(self, epoch: int, epochs: int, optimizer: Optimizer, scaler: GradScaler) -> dict[str, float]:
        seed = self.seed * 100_003 + epoch
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)  # augmentation
        if hasattr(getattr(self.train_loader, "batch_sampler", None), "set_epoch"):
            self.train_loader.batch_sampler.set_epoch(epoch)
        self.model.train()
        steps, tally = len(self.train_loader), _Tally()
        for step, batch in enumerate(self.train_loader):
            lr = self.lr * self._lr_factor((epoch * steps + step) / (epochs * steps), 1 / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            images, target, *maps = self._to_device(batch)
            if self.augment is not None:
                images, target, *maps = self.augment(images, target, *maps, generator=generator)
            logits = self._forward(images)
            loss = self.loss(logits, target, *maps)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"The loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}; no weight was changed "
                    f"by it.\nUse a smaller learning rate (now {lr:.2g}) or check the images with checks.check_images."
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            tally.add(loss.detach(), logits.detach(), target)
        return {"epoch": epoch + 1, "lr": lr} | {f"train_{name}": value for name, value in tally.scores().items()}

    def _lr_factor(self, progress: float, one_step: float) -> float:
        if self.schedule == "constant":
            return 1.0
        warm_up = min(1.0, (progress + one_step) / 0.05)
        return warm_up * 0.5 * (1 + math.cos(math.pi * progress))

    # ---- the run as it lies in memory and in the checkpoint ---------------------------------------------------------

    def _resume(self, optimizer: Optimizer, epochs: int) -> tuple[dict[str, Any], str]:
        """The state to start from (a new one, or that of an interrupted run) and what to say about it."""
        loss = self.loss if isinstance(self.loss, nn.Module) else None
        if self._initial is None:
            self._initial = _copy_to_cpu([self.model.state_dict(), loss.state_dict() if loss is not None else None])
        settings, note = self.settings(), ""
        state = self._state
        if state is None and self.folder is not None:
            state, note = checkpoint.load(self.folder)
        if state is not None and state["settings"] != settings:
            changed = [key for key in settings if state["settings"].get(key) != settings[key]]
            note += f"settings changed ({', '.join(changed)}): started over. "
            state = None
        if state is None:
            self.model.load_state_dict(self._initial[0])
            if loss is not None:
                loss.load_state_dict(self._initial[1])
            precision = self._pick_precision() if self.precision == "auto" else self.precision
            state = {"settings": settings, "epochs": epochs, "precision": precision, "scaler": None}
            return state | {"epoch": 0, "history": []}, note
        if self._state is None:
            note += f"continued after epoch {state['epoch']}. " if state["epoch"] < epochs else "trained before. "
        if state["epochs"] != epochs:
            note += (
                f"begun as a run of {state['epochs']} epochs: its learning rate is not that of one run of {epochs}. "
            )
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(_copy_to_cpu(state["optimizer"]))  # a copy: else training would change the state
        if loss is not None:  # it may count steps, for its warm-up
            loss.load_state_dict(state["loss"])
        return dict(state), note

    def _close_epoch(
        self, state: dict[str, Any], row: dict[str, float], optimizer: Optimizer, scaler: GradScaler
    ) -> None:
        """Note the finished epoch in `state`, all at once, and write it to the folder."""
        score, model = row.get("val_mean_iou", float(row["epoch"])), _copy_to_cpu(self.model.state_dict())
        update = {"model": model, "optimizer": _copy_to_cpu(optimizer.state_dict()), "scaler": scaler.state_dict()}
        update["loss"] = _copy_to_cpu(self.loss.state_dict()) if isinstance(self.loss, nn.Module) else None
        update |= {"epoch": row["epoch"], "history": [*state["history"], row]}
        if not state["history"] or not score <= state["best_score"]:
            update |= {"best_score": score, "best_epoch": row["epoch"], "best_model": model}
        state |= update
        self._state = dict(state)
        if self.folder is not None:
            checkpoint.save(self.folder, state)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        dataset = getattr(self.train_loader, "dataset", None)
        sampler = getattr(self.train_loader, "batch_sampler", None)
        drawn = [getattr(sampler, name, None) for name in ("batch_size", "shuffle", "seed", "repeats")]
        drawn += [getattr(dataset, name, None) for name in ("part", "crop", "maps", "seed")]
        return {
            "model": hashlib.sha256(repr(self.model).encode()).hexdigest()[:16],
            "loss": _name(self.loss),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
            "augment": _name(self.augment),
            "seed": self.seed,
            "precision": self.precision,
            "batches": len(self.train_loader),
            "sampling": str(drawn),
            "transform": _name(getattr(dataset, "transform", None)),
            "data": str(getattr(dataset, "fingerprint", None)),
        }

    def _summary(self, state: dict[str, Any], finished: bool = False) -> str:
        rows = state["history"]
        if not rows:
            return "no epoch is finished"
        seconds = sum(row["seconds"] for row in rows)
        text = f"training loss {rows[-1]['train_loss']:.3f}"
        if "val_mean_iou" in rows[-1]:
            best = rows[state["best_epoch"] - 1]
            text += f" · validation mean IoU {best['val_mean_iou']:.3f} (best, epoch {state['best_epoch']})"
        if not finished:
            return text
        name = f"{self.folder.name}: " if self.folder is not None else ""
        return f"{name}{len(rows)} epochs in {seconds:.0f} s ({state['precision']} on {self.device.type}) · {text}"

    # ---- evaluation and prediction ----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Loss and all scores of `metrics.scores` over a whole set, from one confusion matrix."""
        self.model.eval()
        tally = _Tally()
        for batch in loader:
            images, target, *maps = self._to_device(batch)
            logits = self._forward(images)
            tally.add(self.loss(logits, target, *maps), logits, target)
        return tally.scores()

    @torch.no_grad()
    def predict(self, images: Tensor, *, tile: int = 1024, flips: bool = False) -> Tensor:
        """Class probabilities (B, K, H, W), float32 on the CPU, for normalised images (B, C, H, W) of any size.

        Args:
            images: float, finite.
            tile: images larger than this are cut into tiles of this size, each with a margin as wide as the receptive
                field reaches.  The margin is cut off again, so the result is that of the whole image.  (A model with a
                GroupNorm, which averages over the whole image, is never cut.)
            flips: average over the four reflections of the image.
        """
        check_images(images)
        self.model.eval()
        B, C, H, W = images.shape
        if flips:
            axes: list[list[int]] = [[], [2], [3], [2, 3]]
            views = [self.predict(images.flip(a), tile=tile).flip(a) for a in axes]
            return torch.stack(views).mean(dim=0)
        if max(H, W) <= tile or any(isinstance(module, nn.GroupNorm) for module in self.model.modules()):
            return self._probs(images)  # GroupNorm averages over the whole image: tiles would change the result
        # Tiles start at multiples of 64 (up to six poolings), so that pooling windows lie as in the whole image.
        margin = _round_up(reach(self.model, (1, C, 128, 128)), 64)
        core = _round_up(max(tile - 2 * margin, 64), 64)
        rows = []
        for top in range(0, H, core):
            row = []
            for left in range(0, W, core):
                t, l = max(top - margin, 0), max(left - margin, 0)
                probs = self._probs(images[..., t : top + core + margin, l : left + core + margin])
                row.append(probs[..., top - t : top - t + core, left - l : left - l + core])
            rows.append(torch.cat(row, dim=3))
        return torch.cat(rows, dim=2)

    def _probs(self, images: Tensor) -> Tensor:
        (images,) = self._to_device([images])
        return two_or_more(self._forward(images)).float().softmax(dim=1).cpu()

    # ---- explanation ------------------------------------------------------------------------------------------------

    def explain(self, input_shape: tuple[int, ...] | None = None) -> None:
        """Print the layer table of the model and draw its U, both read off the model itself.

        Args:
            input_shape: (B, C, H, W); default one image of the training set, or 256×256.
        """
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
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
        return [images, *(m.to(self.device, non_blocking=True) for m in maps)]

    def _forward(self, images: Tensor) -> Tensor:
        precision = self.active_precision
        if precision == "float32":
            return self.model(images)
        with torch.autocast(self.device.type, getattr(torch, precision)):
            return self.model(images)

    def _pick_precision(self) -> str:
        """The number format that trains fastest here: by the GPU's generation, on a CPU by timing."""
        if self.device.type == "cuda":
            # A T4 says that it supports bfloat16, but has no units for it.
            return "bfloat16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "float16"
        if self.device.type != "cpu":
            return "float32"
        (images,) = self._to_device(next(iter(self.train_loader))[:1])
        return _faster_format_on_cpu(self.model, images)


class _Tally:
    """Sums loss and confusion matrix over the batches of an epoch, on their device."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.pixels: list[Tensor] = []
        self.confusion: Tensor | float = 0.0

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        self.losses.append(loss)
        self.pixels.append((target != IGNORE_INDEX).sum())
        self.confusion = self.confusion + metrics.confusion_matrix(logits, target)

    def scores(self) -> dict[str, float]:
        if not isinstance(self.confusion, Tensor):
            raise InputError("There is no batch to score: the loader is empty.")
        # In float64 on the CPU: Apple's GPU has none.
        losses, pixels = (torch.stack(values).cpu().double() for values in (self.losses, self.pixels))
        return {"loss": float((losses * pixels).sum() / pixels.sum())} | metrics.scores(self.confusion)


class _LiveLine:
    """Progress: in a notebook one line that replaces itself and stays as the only output, elsewhere a line a step."""

    def __init__(self, active: bool) -> None:
        self._handle: Any = None
        self._display: Callable[..., Any] | None = None
        self._print = active
        if active and "ipykernel" in sys.modules:
            from IPython import get_ipython
            from IPython.display import display

            self._display = display if get_ipython() is not None else None

    def show(self, text: str) -> None:
        if not self._print:
            return
        if self._display is None:
            print(text)
        elif self._handle is None:
            self._handle = self._display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)


def _faster_format_on_cpu(model: nn.Module, images: Tensor) -> str:
    """Time a training step of a copy of the model in both formats: only some CPUs have units for bfloat16.

    The answer is kept for all models of the process that see batches of this shape.
    """
    if images.shape not in _FASTER:
        model = copy.deepcopy(model).train()
        seconds = {"float32": math.inf, "bfloat16": math.inf}
        for _ in range(3):  # the first round warms up
            for name in seconds:
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                    model(images).float().square().mean().backward()
                seconds[name] = min(seconds[name], time.perf_counter() - began)
        # A clear lead only: else noise in the timing would decide, and two runs of one seed would differ.
        _FASTER[images.shape] = "bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"
    return _FASTER[images.shape]


_FASTER: dict[torch.Size, str] = {}


def _copy_to_cpu(value: Any) -> Any:
    """A copy of a nested state, which later training steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(entry) for key, entry in value.items()}
    return [_copy_to_cpu(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _name(function: Any) -> str:
    """What a loss or augmentation is called, with its settings, the same in every process."""
    if isinstance(function, functools.partial):
        settings = {**{str(i): value for i, value in enumerate(function.args)}, **function.keywords}
        return f"{_name(function.func)}({', '.join(f'{k}={v}' for k, v in sorted(settings.items()))})"
    if getattr(function, "__module__", "") == "__main__" and inspect.isfunction(function):
        with contextlib.suppress(OSError):  # a function of the notebook may have been edited: its text counts
            text = inspect.getsource(function)
            return f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return getattr(function, "__name__", None) or (
        repr(function) if isinstance(function, nn.Module) else type(function).__name__
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
