"""Train, evaluate, predict, explain: one plain loop around a model, a loss and two loaders.

The loop is forward, loss, backward, stop if the loss is not finite, step.  Everything random in an epoch follows from
(seed, epoch) alone: the order of the samples, their crops, the augmentation, dropout.  So a run that was cut off needs
only its weights, its optimiser and the number of its epoch to continue as if nothing had happened: bit for bit on a
CPU, on a GPU up to the rounding of sums whose order is not fixed there.

Within an epoch the host never waits for a GPU: losses, counts and the watch for NaN stay on the device until its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

import plots
from checks import InputError, check_images, check_weights, dead_worker, two_or_more
from networks import inspection
from training import checkpoint, distributed, modes
from training.progress import LiveLine
from training.resident import on_device
from training.run_settings import data_settings, image_names, model_hash, name_of
from training.tally import Tally, Watch
from training.tiles import margin_of, predict_tiled

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
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
        precision: "float32", "bfloat16", "float16" (channels last), or "auto": the fastest way here (`modes.py`).
        verbose: show one line of progress.

    Attributes:
        history: one dict for each epoch; see `fit`.
        mode: number format, memory layout and compiler in use, once `fit` has chosen them.
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
        if precision not in PRECISIONS:
            raise InputError(f"Learner: precision={precision!r}; choose one of {', '.join(PRECISIONS)}.")
        distributed.start()
        modes.keep_freed_memory()
        self.device = distributed.local_device(torch.device(device) if device is not None else pick_device())
        self.model = model.to(self.device)
        self.loss, self.train_loader, self.val_loader = loss, train_loader, val_loader
        self.lr, self.weight_decay, self.schedule, self.augment = lr, weight_decay, schedule, augment
        self.folder = Path(folder) if folder is not None else None
        self.seed, self.precision, self.verbose = seed, precision, verbose
        self.history: list[dict[str, float]] = []
        self._initial: Any = None  # state of model and loss before the first step
        self._state: dict[str, Any] | None = None  # the run as of its last epoch, as it is in the checkpoint
        self._model_hash = model_hash(model)
        self._train_model: Callable[[Tensor], Tensor] = model  # with what `fit` wraps round it
        self._batches: Any = None  # the training loader, or one of the same batches on the GPU
        self._parts = 1  # into which a batch is cut
        self._use(modes.Mode(precision if precision != "auto" else "float32"), parts=1)  # until `fit` has chosen

    # ---- training ---------------------------------------------------------------------------------------------------

    def fit(
        self, epochs: int, after_epoch: Callable[[dict[str, float]], object] | None = None
    ) -> list[dict[str, float]]:
        """Train until `epochs` epochs are done in all, and leave the model with the best weights seen.

        The best epoch is the one of highest validation mean IoU (the last epoch if there is no validation).  A run
        found in `folder` with the same settings is continued, a finished one is not trained again.  If the memory
        does not hold a batch, its halves (quarters, …) follow each other and their gradients are added up.

        `after_epoch` gets the row of each finished epoch; an exception that it raises ends the training there.

        Returns:
            history: a dict for each epoch with epoch, lr, train_loss, train_accuracy, …, val_loss, …, seconds, parts
            (into how many pieces a batch is cut).

        Raises:
            InputError: if there is no training data, another run uses the folder, or it cannot be written.
            FloatingPointError: if the loss is not finite; the best weights so far stay.
        """
        if self.train_loader is None or len(self.train_loader) == 0:
            raise InputError("Learner.fit: there is no training data; give a train_loader with at least one batch.")
        if self.folder is None or distributed.rank() > 0:
            return self._fit(epochs, after_epoch, "")
        with checkpoint.locked(self.folder) as warning:
            return self._fit(epochs, after_epoch, warning)

    def _fit(
        self, epochs: int, after_epoch: Callable[[dict[str, float]], object] | None, note: str
    ) -> list[dict[str, float]]:
        line = LiveLine(self.verbose and distributed.rank() == 0)
        fused = self.device.type in ("cpu", "cuda", "mps")  # one call for all weights, which can also leave a step out
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=fused or None
        )
        state, found = self._resume(optimizer, epochs)
        note += found
        self._batches = on_device(self.train_loader, self.device)
        if self._train_model is self.model:
            self._train_model = distributed.together(self.model, self.device)
            self._train_model = torch.compile(self._train_model) if self.mode.compiled else self._train_model
        if state["epoch"] < epochs:
            line.show(f"{note}epoch {state['epoch'] + 1}/{epochs} …")
        scaler = GradScaler(self.device.type, enabled=self.mode.precision == "float16")
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
        except RuntimeError as error:
            raise dead_worker(error) or error from None
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
        steps, tally, watch = len(self._batches), Tally(), Watch(self.device)
        for step, batch in enumerate(self._batches):
            lr = self.lr * self._lr_factor((epoch * steps + step) / (epochs * steps), 1 / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            images, target, *maps = self._to_device(batch)
            if self.augment is not None:
                images, target, *maps = self.augment(images, target, *maps, generator=generator)
            pieces = self._backward([images, target, *maps], optimizer, scaler)
            watch.see([loss for loss, _, _ in pieces], step)
            if self.device.type != "cuda":  # a GPU is not asked before the end of the epoch
                self._stop_if_not_finite(watch, epoch)
            if self.device.type != "mps" and not scaler.is_enabled():  # float16 has its own watch, in the scaler
                optimizer.found_inf = watch.found()  # type: ignore[attr-defined]  # 1: the step changes nothing
            scaler.step(optimizer)
            scaler.update()
            for piece in pieces:
                tally.add(*piece)
        self._stop_if_not_finite(watch, epoch)
        return {"epoch": epoch + 1, "lr": lr} | {f"train_{name}": value for name, value in tally.scores().items()}

    def _backward(self, batch: Batch, optimizer: Optimizer, scaler: GradScaler) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Leave the gradient of the batch in the weights; return loss, logits and target of each of its pieces."""
        mine = distributed.shared(batch)
        weight = distributed.weight_of_share(len(batch[0]))
        counters = {name: value.clone() for name, value in (self._loss_state() or {}).items()}
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                pieces = []
                for images, target, *maps in zip(*(tensor.chunk(self._parts) for tensor in mine)):
                    self._load_loss(counters)  # a loss that counts its steps counts this batch once
                    with self.mode.autocast(self.device):
                        logits = self._train_model(images)
                    loss = self.loss(logits, target, *maps)
                    scaler.scale(loss * (len(images) / len(mine[0]) * weight)).backward()
                    pieces.append((loss.detach(), logits.detach(), target))
                return pieces
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            self._cut_batch(len(mine[0]))

    def _cut_batch(self, size: int) -> None:
        """The memory was full: take the batch in twice as many pieces from now on."""
        if self._parts >= size or distributed.world_size() > 1:
            raise InputError(
                f"The memory of {self.device} does not hold {'one image' if self._parts >= size else 'a share'} "
                f"of the batch of {size}.\nTake a smaller crop, a smaller batch, or a model with smaller widths."
            )
        self._parts = min(2 * self._parts, size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _stop_if_not_finite(self, watch: Watch, epoch: int) -> None:
        step = watch.first_step()
        if step is not None:
            names = ", ".join(image_names(self.train_loader, step)[:16])
            raise FloatingPointError(
                f"The loss became NaN or infinite in epoch {epoch + 1}, step {step + 1}; no weight was changed by it."
                + (f"\nImages of this batch: {names}." if names else "")
                + f"\nUse a smaller learning rate (now {self.lr:.2g}) or look at these images and labels."
            )

    def _lr_factor(self, progress: float, one_step: float) -> float:
        if self.schedule == "constant":
            return 1.0
        warm_up = min(1.0, (progress + one_step) / 0.05)
        return warm_up * 0.5 * (1 + math.cos(math.pi * progress))

    # ---- the run as it lies in memory and in the checkpoint ---------------------------------------------------------

    def _resume(self, optimizer: Optimizer, epochs: int) -> tuple[dict[str, Any], str]:
        """The state to start from (a new one, or that of an interrupted run) and what to say about it."""
        if self._initial is None:
            own = _copy_to_cpu([self.model.state_dict(), self._loss_state()])
            self._initial = distributed.from_rank_0(own)  # all processes begin, and begin again, with the same weights
        state, note = distributed.from_rank_0(self._find_state(epochs) if distributed.rank() == 0 else None)
        self._use(modes.Mode(**state["mode"]), state["parts"])
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
            note += f"settings changed ({', '.join(changed)}): started over. "
            state = None
        if state is None:
            mode = asdict(self._pick_mode(epochs))
            state = {"settings": settings, "epochs": epochs, "mode": mode, "parts": 1, "scaler": None}
            return state | {"epoch": 0, "history": []}, note
        if self._state is None:
            note += f"continued after epoch {state['epoch']}. " if state["epoch"] < epochs else "trained before. "
        if state["epochs"] != epochs:
            note += (
                f"begun as a run of {state['epochs']} epochs: its learning rate is not that of one run of {epochs}. "
            )
        return state, note

    def _close_epoch(
        self, state: dict[str, Any], row: dict[str, float], optimizer: Optimizer, scaler: GradScaler
    ) -> None:
        """Note the finished epoch in `state`, all at once, and write it to the folder."""
        score, model = row.get("val_mean_iou", float(row["epoch"])), _copy_to_cpu(self.model.state_dict())
        update = {"model": model, "optimizer": _copy_to_cpu(optimizer.state_dict()), "scaler": scaler.state_dict()}
        update |= {"loss": _copy_to_cpu(self._loss_state()), "parts": self._parts}
        update |= {"epoch": row["epoch"], "history": [*state["history"], row]}
        if not state["history"] or not score <= state["best_score"]:
            update |= {"best_score": score, "best_epoch": row["epoch"], "best_model": model}
        state |= update
        self._state = dict(state)
        if self.folder is not None and distributed.rank() == 0:
            checkpoint.save(self.folder, state)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be continued."""
        return {
            "model": self._model_hash,
            "loss": name_of(self.loss),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "schedule": self.schedule,
            "augment": name_of(self.augment),
            "seed": self.seed,
            "precision": self.precision,
        } | data_settings(self.train_loader)

    def restore(self) -> None:
        """Give the model the best weights of the run in `folder`, without any training.

        Raises:
            InputError: if there is no run in the folder, or its weights belong to another architecture.
        """
        state, note = checkpoint.load(self.folder) if self.folder is not None else (None, "")
        if state is None:
            raise InputError(f"Learner.restore: no finished epoch in folder={self.folder}. {note}Train it with fit.")
        check_weights(self.model, state["best_model"])
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
        return f"{name}{len(rows)} epochs in {seconds:.0f} s ({self.mode} on {self.device.type}) · {text}"

    # ---- evaluation and prediction ----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Batch]) -> dict[str, float]:
        """Loss and all scores of `metrics.scores` over a whole set, from one confusion matrix."""
        self.model.eval()
        tally = Tally()
        for batch in loader:
            mine = distributed.shared(self._to_device(batch))
            for images, target, *maps in zip(*(tensor.chunk(self._parts) for tensor in mine if len(tensor))):
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
        if images.device.type == "cpu":  # on a GPU the check would wait for it
            check_images(images)
        images = images.to(self.device, torch.float32, non_blocking=True, memory_format=self.mode.memory_format)
        return [images, *(m.to(self.device, non_blocking=True) for m in maps)]

    def _forward(self, images: Tensor) -> Tensor:
        with self.mode.autocast(self.device):
            return self.model(images)

    def _use(self, mode: modes.Mode, parts: int) -> None:
        """Run the model in this mode from now on, and batches in that many pieces."""
        self.mode, self._parts = mode, parts
        self.model.to(memory_format=mode.memory_format)  # type: ignore[call-overload]

    def _pick_mode(self, epochs: int) -> modes.Mode:
        if self.precision != "auto":
            return modes.Mode(self.precision)
        (images,) = self._to_device(next(iter(self.train_loader))[:1])
        memory = self.folder.parent / modes.MEMORY if self.folder is not None else None
        return modes.fastest(self.model, images, steps=epochs * len(self.train_loader), memory=memory)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU PyTorch has a class for it, on a CPU only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _copy_to_cpu(value: Any) -> Any:
    """A copy of a nested state, which later training steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(entry) for key, entry in value.items()}
    return [_copy_to_cpu(entry) for entry in value] if isinstance(value, (list, tuple)) else value
