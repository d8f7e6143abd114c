"""Trains the small text-to-video model: rectified flow on procedural clips, in stages of growing token count.

    tools/train/run --budget 20m --device cuda      one data-centre GPU: the full configuration
    tools/train/run --budget 2h --device cpu        two cores: a preliminary model, smaller and fewer tokens

Writes to --out: log.csv (a row per step), checkpoint.pt (resumed from when it is there), samples-*.png and, at
the end and at every checkpoint, the model folder. docs/training.md describes the run.
"""
import argparse
import csv
import dataclasses
import os
import pathlib
import sys
import time

import torch

from tools.train import captions, clips, folder, optim, sampling, stages
from tools.train.autoencoder import LinearAutoencoder
from tools.train.guide import Guide
from tools.train.model import Sizes, TextEncoder, WanTransformer
from tools.train.reader import AttributeReader
from tools.train.tokenizer import CaptionTokenizer

LOG_FIELDS = ["step", "progress", "stage", "slots", "cells", "batch", "loss", "reader_loss", "guide_loss", "grad_norm", "seconds"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that differs between machines."""
    sizes: Sizes
    plan: tuple
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    average: float = 0.999
    object_weight: float = 4.0  # of a token that shows an object, in the flow loss; others have 1
    reader_weight: float = 0.1  # of the text encoder's extra objective, see reader.py
    guide_weight: float = 0.5   # of the objective on hidden states, see guide.py
    # What `lacuna generate` does with the model when not told otherwise.
    defaults: dict = dataclasses.field(default_factory=dict)


DEFAULTS = {"license": "Apache-2.0", "negative_prompt": "", "frames": 32, "fps": 16, "steps": 20, "shift": 3.0, "guidance": 4.0}
RECIPES = {
    "cpu": Recipe(Sizes(layers=6, heads=3, ffn=768), stages.CPU_PLAN, average=0.995,
                  defaults={"name": "Lacuna Shapes, preliminary", "width": 96, "height": 96} | DEFAULTS),
    "cuda": Recipe(Sizes(), stages.CUDA_PLAN, defaults={"name": "Lacuna Shapes", "width": 192, "height": 192} | DEFAULTS),
}


class Trainer:
    """Weights, optimisers and the step. All randomness of step i comes from (seed, i)."""

    def __init__(self, recipe, device, seed):
        torch.manual_seed(seed)
        self.recipe, self.device, self.seed = recipe, device, seed
        self.sizes = recipe.sizes
        self.transformer = WanTransformer(self.sizes).to(device)
        self.text_encoder = TextEncoder(self.sizes).to(device)
        self.autoencoder = LinearAutoencoder.fit(self.sizes.channels, seed, device)
        self.tokenizer = CaptionTokenizer(self.sizes.vocab)
        self.reader = AttributeReader(self.sizes.text_dim).to(device)
        self.guide = Guide(self.sizes).to(device)
        matrices, rest = optim.split_parameters(self.transformer, self.text_encoder)
        rest += [*self.reader.parameters(), *self.guide.parameters()]
        self.muon = optim.Muon(matrices, lr=recipe.muon_lr)
        self.adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.01)
        self.average = optim.Average((self.transformer, self.text_encoder), recipe.average)
        self.compiled = torch.compile(self.transformer) if device != "cpu" else self.transformer

    def parameters(self):
        return [p for net in (self.transformer, self.text_encoder, self.reader, self.guide) for p in net.parameters()]

    def set_rates(self, step, progress):
        """Warm-up over 100 steps, then constant, then linear to zero over the last 30 %."""
        scale = min(1.0, (step + 1) / 100, max(0.0, 1 - progress) / 0.3)
        for optimiser, rate in ((self.muon, self.recipe.muon_lr), (self.adam, self.recipe.adam_lr)):
            for group in optimiser.param_groups:
                group["lr"] = rate * scale

    def noise_levels(self, count, shift, generator):
        """sigma = shifted sigmoid of a normal for nine in ten, uniform for the rest."""
        s = torch.sigmoid(torch.randn(count, generator=generator))
        s = shift * s / (1 + (shift - 1) * s)
        uniform = torch.rand(count, generator=generator)
        return torch.where(torch.rand(count, generator=generator) < 0.1, uniform, s).clamp(1e-3, 1).to(self.device)

    def loss(self, step, stage, shape):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        batch = stages.make_batch(stage, shape, step, self.seed, self.autoencoder, self.tokenizer,
                                  self.sizes, self.device)
        sigma = self.noise_levels(shape.batch, stage.shift, generator)
        noise = torch.randn(batch.clean.shape, generator=generator).to(self.device)
        level = sigma[:, None, None]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            noisy = (1 - level) * batch.clean + level * noise
            context = self.text_encoder(batch.ids)
            velocity, hidden = self.compiled(noisy, sigma, context, batch.rope, self.guide.taps)
            named = self.reader.loss(context, batch.ids, batch.said)
            guided = self.guide.loss(hidden, batch.place, batch.scene)
        error = (velocity.float() - stages.swap_order(noise - batch.clean)).square().mean(-1)
        weight = 1 + (self.recipe.object_weight - 1) * batch.near
        return (error * weight).sum() / weight.sum(), named, guided

    def step(self, step, progress, stage, shape):
        """One update. Returns the flow loss, the reader's, the guide's and the gradient norm."""
        self.set_rates(step, progress)
        loss, named, guided = self.loss(step, stage, shape)
        (loss + self.recipe.reader_weight * named + self.recipe.guide_weight * guided).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimiser in (self.muon, self.adam):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.average.update(step)
        return loss.item(), named.item(), guided.item(), norm.item()

    def state(self):
        return {"transformer": self.transformer.state_dict(), "text_encoder": self.text_encoder.state_dict(),
                "reader": self.reader.state_dict(), "guide": self.guide.state_dict(),
                "muon": self.muon.state_dict(), "adam": self.adam.state_dict(), "average": self.average.values,
                "autoencoder": self.autoencoder.tensors()}

    def load(self, state):
        for name in ("transformer", "text_encoder", "reader", "guide", "muon", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.average.values = state["average"]
        self.autoencoder = LinearAutoencoder(**state["autoencoder"])


    def start_from(self, model):
        """Weights of a finished model of the same sizes; the optimisers start anew."""
        transformer, text_encoder, self.autoencoder = folder.read_model(model)
        self.autoencoder = self.autoencoder.to(self.device)
        self.transformer.load_state_dict(transformer.state_dict())
        self.text_encoder.load_state_dict(text_encoder.state_dict())
        self.average = optim.Average((self.transformer, self.text_encoder), self.recipe.average)


class Schedule:
    """Which share of the budget is spent at each step: by the clock, or as an earlier run's log says.

    On a CPU the clock is processor time per thread unless `wall` is true, so that a machine with other work trains
    longer, not less.
    """

    def __init__(self, budget, device, replay, wall=False, begin=0.0):
        self.budget, self.spent, self.last = budget, begin * budget, None
        self.clock = time.monotonic if wall or device != "cpu" else lambda: time.process_time() / torch.get_num_threads()
        self.replay = read_progress(replay) if replay else None

    def progress(self, step):
        """1 or more = the run is over."""
        if self.replay is not None:
            return self.replay[step] if step < len(self.replay) else 1.0
        now = self.clock()
        self.spent += now - self.last if self.last is not None else 0.0
        self.last = now
        return self.spent / self.budget


def read_progress(path):
    """Progress at every step of an earlier run's log, which must have them all."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for expected, row in enumerate(rows):
        if int(row["step"]) != expected:
            sys.exit(f"train: {path} has step {row['step']} in row {expected + 1}, expected {expected}: it cannot be replayed")
    return [float(row["progress"]) for row in rows]


def draw_samples(trainer, out, step, shape, count=8):
    """A sheet of `count` clips of fixed captions with the averaged weights."""
    sizes = trainer.sizes
    texts = [captions.canonical_caption(clips.sample_scene(seed)) for seed in range(count)]
    ids = torch.tensor([trainer.tokenizer.encode(c, sizes.text_len) for c in texts], device=trainer.device)
    noise = torch.randn(count, shape.tokens, sizes.token_values, generator=torch.Generator().manual_seed(0))
    trainer.average.swap()
    tokens = sampling.generate(trainer.transformer, trainer.text_encoder, ids, shape, noise.to(trainer.device))
    trainer.average.swap()
    video = trainer.autoencoder.decode(stages.from_tokens(tokens, shape.slots, shape.cells))
    sampling.write_png(out / f"samples-{step:06d}-{shape.tokens}.png", sampling.contact_sheet(video, 8))
    (out / "samples.txt").write_text("\n".join(texts) + "\n")


def save(trainer, schedule, step, out):
    """Checkpoint and model folder, each complete or absent."""
    held = out / "checkpoint.partial"
    torch.save({"step": step, "spent": schedule.spent, "state": trainer.state()}, held)
    os.replace(held, out / "checkpoint.pt")
    trainer.average.swap()
    folder.write_model(out / "model", trainer, trainer.recipe.defaults)
    trainer.average.swap()


def open_log(path, step):
    """The log, ready for row `step`: rows after the checkpoint that is resumed from go."""
    rows = [row for row in csv.DictReader(open(path)) if int(row["step"]) < step] if path.exists() else []
    file = open(path, "w", newline="")
    log = csv.DictWriter(file, LOG_FIELDS)
    log.writeheader()
    log.writerows(rows)
    file.flush()
    return file, log


def train(args):
    recipe = RECIPES[args.device]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.replay and (out / "log.csv").exists() and os.path.samefile(args.replay, out / "log.csv"):
        sys.exit(f"train: --replay {args.replay} is the log of --out {out} itself, expected another --out")
    trainer = Trainer(recipe, args.device, args.seed)
    schedule = Schedule(args.budget, args.device, args.replay, args.wall, args.begin)
    step = 0
    if args.init:
        trainer.start_from(args.init)
    if (out / "checkpoint.pt").exists():
        held = torch.load(out / "checkpoint.pt", map_location=args.device)
        trainer.load(held["state"])
        step, schedule.spent = held["step"], held["spent"]
        print(f"resuming at step {step}", file=sys.stderr)
    log_file, log = open_log(out / "log.csv", step)
    saved = time.monotonic()
    while (progress := schedule.progress(step)) < 1:
        index = stages.stage_at(recipe.plan, progress)
        stage = recipe.plan[index]
        choice = torch.rand(1, generator=torch.Generator().manual_seed(args.seed * 7919 + step)).item()
        shape = pick(stage.shapes, choice)
        begin = time.monotonic()
        loss, named, guided, norm = trainer.step(step, progress, stage, shape)
        seconds = time.monotonic() - begin
        log.writerow({"step": step, "progress": repr(progress), "stage": index, "slots": shape.slots,
                      "cells": shape.cells, "batch": shape.batch, "loss": f"{loss:.5f}", "reader_loss": f"{named:.5f}",
                      "guide_loss": f"{guided:.5f}", "grad_norm": f"{norm:.3f}",
                      "seconds": f"{seconds:.3f}"})
        step += 1
        if step % 10 == 0:
            log_file.flush()
            left = (1 - progress) * args.budget / 60
            print(f"\rstep {step}  stage {index}  {shape.tokens} tokens  loss {loss:.4f}  "
                  f"{seconds:.2f} s/step  {left:.0f} min left ", end="", file=sys.stderr)
        if time.monotonic() - saved > args.save_minutes * 60:
            log_file.flush()  # rows before the checkpoint are not made again
            save(trainer, schedule, step, out)
            draw_samples(trainer, out, step, max((s for _, s in stage.shapes), key=lambda s: s.tokens))
            saved = time.monotonic()
    save(trainer, schedule, step, out)
    draw_samples(trainer, out, step, max((s for _, s in recipe.plan[-1].shapes), key=lambda s: s.tokens))
    print(f"\n{step} steps; the model is in {out / 'model'}", file=sys.stderr)


def pick(shapes, choice):
    for probability, shape in shapes:
        if choice < probability:
            return shape
        choice -= probability
    return shapes[-1][1]


def seconds(text):
    """'20m', '2h', '90s' or plain seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=seconds, default="20m", help="time to train: 20m, 2h (default 20m); of both cores on a CPU")
    parser.add_argument("--device", choices=sorted(RECIPES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="out/train", help="folder of checkpoint, log, samples and model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", help="model folder to start from, such as assets/lacuna-shapes")
    parser.add_argument("--begin", type=float, default=0, help="share of the budget that counts as spent: with --init, 0.5 leaves out "
                        "the CPU recipe's stage of half resolution")
    parser.add_argument("--replay", help="log.csv of an earlier run: the same steps whatever the clock says")
    parser.add_argument("--wall", action="store_true", help="on a CPU too the budget is time on the clock, not processor time")
    parser.add_argument("--save-minutes", type=float, default=5, help="minutes between checkpoints (default 5)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
