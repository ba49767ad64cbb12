"""Train a Storyteller on a folder of books and export it as a Hugging Face folder.

Run, in the repository's root: ``python -m examples.train_storyteller.train --books DIR --out DIR
[--init FOLDER|none] [--minutes N | --steps N] [--resume]``

On a CPU every worker thread takes micro-batches of its own, single-threaded: each thread then
waits for the others once per step instead of once per operation, which on a machine shared with
other work was twice as fast. On a GPU one worker runs in bfloat16.

Progress is counted in steps, or for ``--minutes`` in the CPU time of the process divided by its
threads (GPU: wall time while running), so a process that is stopped and continued loses nothing.
A file ``OUT/minutes`` replaces ``--minutes`` while the run is going: writing the time reached so
far divided by (1 - cooldown) starts the cooldown at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.train_storyteller.data import (
    VALIDATION_BOOK,
    Sampler,
    encode_book,
    load_books,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    training_books,
)
from examples.train_storyteller.evaluate import evaluate
from examples.train_storyteller.model import Config, Storyteller, load_model, save_model
from examples.train_storyteller.optimizer import Optimizer

WARMUP_STEPS = 40
EXPORT_TOKENS = 40_000  # validation tokens of an intermediate export


@dataclass
class Progress:
    """What a checkpoint keeps besides tensors; ``seconds`` is the time that the schedule counts."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    pass_number: int = 0
    windows_drawn: int = 0
    penalty: float = 0.01
    active: float = 1.0


def learning_rate_scale(done: float, step: int, cooldown: float) -> float:
    """Warm up, stay at 1, then fall linearly to 0 over the last ``cooldown`` share of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1.0 - done) / cooldown))


def penalty_update(penalty: float, active: float, target: float) -> float:
    """Steer the weight of the ReLU penalty so that the active fraction meets its target.

    At 10 % too many active neurons the weight doubles in 140 steps. The model follows with some
    delay: in the run of the README the fraction fell to 0.091 under a target of 0.10.
    """
    return penalty * (1.0 + 0.05 * max(-0.5, min(0.5, active / target - 1.0)))


class Trainer:
    """Model, averaged weights, optimizer and the loop over steps."""

    def __init__(self, args: argparse.Namespace, model: Storyteller, sampler: Sampler) -> None:
        self.args, self.sampler, self.progress = args, sampler, Progress()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.warm = False  # whether the loss has run (and so is compiled)
        self.threads = 1 if self.device.type == "cuda" else args.threads
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self.pool = ThreadPoolExecutor(self.threads, initializer=lambda: torch.set_num_threads(1))
        self.model = model.to(self.device)
        self.named = dict(self.model.named_parameters())
        self.average = {name: weight.detach().clone() for name, weight in self.named.items()}
        self.optimizer = Optimizer(self.named, args.muon_lr, args.adam_lr, args.weight_decay)
        self.loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = self._loss
        if args.compile:
            self.loss = torch.compile(self._loss, dynamic=False)

    def _loss(self, batch: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a (B, T + 1) batch: loss with penalty, nats per token, active fraction."""
        hidden, relus = self.model(batch[:, :-1])
        logits = F.linear(hidden, self.model.embed_tokens.weight).flatten(0, 1)  # (B * T, V)
        nats = F.cross_entropy(logits.float(), batch[:, 1:].flatten())
        magnitude = torch.stack([relu.float().mean() for relu in relus]).sum()
        active = torch.stack([(relu > 0).float().mean() for relu in relus]).mean()
        return nats + penalty * magnitude, nats.detach(), active

    def _micro_step(self, batch: Tensor) -> tuple[tuple[Tensor, ...], float, float]:
        penalty = torch.tensor(self.progress.penalty, device=self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            loss, nats, active = self.loss(batch, penalty)
        return torch.autograd.grad(loss, list(self.named.values())), float(nats), float(active)

    def step(self, done: float) -> float:
        """One optimizer step; returns the mean nats per token of its batch."""
        args, progress = self.args, self.progress
        batch = torch.from_numpy(self.sampler.batch(args.batch)).to(self.device)
        pieces = torch.split(batch, args.micro_batch)
        # The first call compiles, which two threads at once must not. Sums are taken in the order
        # of the pieces, not of their ends, so that a run repeats bit by bit.
        results = list((self.pool.map if self.warm else map)(self._micro_step, pieces))
        self.warm = True
        sums = (torch.stack(grads).mean(0) for grads in zip(*(r[0] for r in results), strict=True))
        grads = dict(zip(self.named, sums, strict=True))
        scale = learning_rate_scale(done, progress.step, args.cooldown)
        self.optimizer.step(grads, progress.step, scale, self._each)
        with torch.no_grad():
            keep = min(args.average, progress.step / (progress.step + 10))
            for name, weight in self.named.items():
                self.average[name].lerp_(weight, 1.0 - keep)
        active = sum(r[2] for r in results) / len(results)
        progress.active = active if progress.step == 0 else 0.9 * progress.active + 0.1 * active
        settled = min(1.0, done / 0.6)
        target = args.active_start + (args.active - args.active_start) * settled
        progress.penalty = penalty_update(progress.penalty, progress.active, target)
        progress.step += 1
        progress.tokens += batch[:, 1:].numel()
        progress.pass_number, progress.windows_drawn = self.sampler.state()
        return sum(r[1] for r in results) / len(results)

    def _each(self, function: Callable[[Any], None], items: Iterable[Any]) -> object:
        return list(self.pool.map(function, items))

    def clock(self) -> float:
        """Seconds of the process that the schedule counts."""
        if self.device.type == "cuda":
            return time.perf_counter()
        return time.process_time() / self.threads

    def averaged_model(self) -> Storyteller:
        """The averaged weights as a model of its own, on the CPU."""
        model = Storyteller(self.model.config)
        model.load_state_dict({name: weight.cpu() for name, weight in self.average.items()})
        return model

    def save(self, folder: Path) -> None:
        """Write a checkpoint beside the old one and swap them, so that a stop cannot harm it."""
        new = folder.with_name(folder.name + ".new")
        new.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{k}": v.detach() for k, v in self.named.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.state.items()}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, new / "state.safetensors")
        (new / "progress.json").write_text(json.dumps(asdict(self.progress), indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        state = load_file(folder / "state.safetensors")
        with torch.no_grad():
            for name, weight in self.named.items():
                weight.copy_(state[f"weight.{name}"])
                self.average[name].copy_(state[f"average.{name}"])
            for name, tensor in self.optimizer.state.items():
                tensor.copy_(state[f"optimizer.{name}"])
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))


def share_done(args: argparse.Namespace, progress: Progress) -> float:
    """How much of the run is behind, 0 to 1."""
    if args.steps:
        return float(progress.step / args.steps)
    override = args.out / "minutes"
    minutes = float(override.read_text()) if override.exists() else args.minutes
    return float(progress.seconds / 60 / minutes)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--books", type=Path, required=True, help="folder of *.txt books")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--init", default="none", help="Hugging Face folder to start from, or none")
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the run")
    parser.add_argument("--steps", type=int, help="length of the run, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint")
    parser.add_argument("--seed", type=int, default=1, help="of weights and of the windows' order")
    parser.add_argument("--threads", type=int, default=2, help="CPU workers")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="windows a worker takes at once")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="of matrices in the layers")
    parser.add_argument("--adam-lr", type=float, default=0.003, help="of embeddings and norms")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of matrices")
    parser.add_argument("--cooldown", type=float, default=0.35, help="share of falling rate")
    parser.add_argument("--average", type=float, default=0.98, help="decay of averaged weights")
    parser.add_argument("--active", type=float, default=0.10, help="wanted active FFN fraction")
    parser.add_argument("--active-start", type=float, default=0.5, help="the same at the start")
    parser.add_argument("--twice", default="", help="books (regex) that come twice in a pass")
    parser.add_argument("--export-every", type=float, default=10.0, help="minutes between exports")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="eager torch")
    return parser.parse_args()


def main() -> None:
    """Prepare, train, export."""
    args = parse()
    torch.manual_seed(args.seed)
    files, init = training_books(args.books), None if args.init == "none" else Path(args.init)
    config = Config.from_folder(init) if init else Config()
    if init:
        tokenizer = load_tokenizer(init)
    elif args.resume:
        tokenizer = load_tokenizer(args.out / "tokenizer")
    else:
        tokenizer = train_tokenizer(files, config.vocab_size)
    save_tokenizer(tokenizer, args.out / "tokenizer", config.max_position_embeddings)
    checkpoint, state = args.out / "checkpoint", (0, 0)
    if args.resume:
        saved = Progress(**json.loads((checkpoint / "progress.json").read_text()))
        state = (saved.pass_number, saved.windows_drawn)
    sampler = Sampler(load_books(tokenizer, files, args.twice), args.length, args.seed, state)
    trainer = Trainer(args, load_model(init) if init else Storyteller(config), sampler)
    if args.resume:
        trainer.restore(checkpoint)
    book = args.books / VALIDATION_BOOK
    text = book.read_text(encoding="utf-8") if book.exists() else ""
    validation = torch.from_numpy(encode_book(tokenizer, book)) if text else None

    def export(folder: Path, limit: int) -> None:
        model, progress = trainer.averaged_model(), trainer.progress
        save_model(model, folder)
        save_tokenizer(tokenizer, folder, config.max_position_embeddings)
        if validation is None:
            return
        head = validation[:limit]
        size = len(text) if limit >= len(validation) else len(tokenizer.decode(head[1:].tolist()))
        metrics = evaluate(model, head, size, args.length, args.length // 2)
        metrics |= {"validation_book": VALIDATION_BOOK, "validation_tokens": len(head)}
        metrics |= {"trained_tokens": progress.tokens, "step": progress.step}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        print("export", json.dumps(metrics), flush=True)

    progress, last = trainer.progress, trainer.clock()
    exported = progress.seconds
    while (done := share_done(args, progress)) < 1.0:
        nats, before = trainer.step(done), last
        last = trainer.clock()
        progress.seconds += last - before
        if progress.step % 10 == 0:
            rate = args.batch * args.length / (last - before)
            print(
                f"step {progress.step} done {done:.3f} loss {nats:.4f} active {progress.active:.4f}"
                f" penalty {progress.penalty:.4f} minutes {progress.seconds / 60:.1f}"
                f" tokens/s {rate:.0f} pass {progress.pass_number} {time.strftime('%H:%M')}",
                flush=True,
            )
        if progress.seconds - exported > 60 * args.export_every:
            exported = progress.seconds
            trainer.save(checkpoint)
            export(args.out / "latest", EXPORT_TOKENS)
    trainer.save(checkpoint)
    export(args.out / "final", 1 << 40)


if __name__ == "__main__":
    main()
