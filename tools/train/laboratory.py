"""How attention of the small model is spread: what a sparse method can hope for, head by head.

Runs the shipped model on a few prompts, dense, and looks at the exact softmax mass of 64 x 64 blocks:

    density for 90 % and 95 %   key blocks each query block needs until its mass is reached, over all blocks
    near, site                  mass within two tokens on every axis, and on the same place in all frames
    steps, prompts              how alike (intersection over union) two 90 % masks are between neighbouring
                                steps of a prompt, and between prompts at one step

Writes JSON and, with --plot, a picture. Reported in docs/results.md.
"""
import argparse
import json
import pathlib
import sys

import torch

from tools.train import folder, sampling, stages
from tools.train.model import rotate
from tools.train.tokenizer import CaptionTokenizer

BLOCK = 64


def block_mass(q, k, scale, near, site):
    """q, k [N, d] -> mass [blocks, blocks] with rows that sum to 1, and the mass inside two token predicates."""
    tokens = q.shape[0]
    blocks = -(-tokens // BLOCK)
    mass, near_mass, site_mass = torch.empty(blocks, blocks), 0.0, 0.0
    edges = torch.arange(0, tokens, BLOCK)
    for i in range(blocks):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        p = torch.softmax(q[rows] @ k.T * scale, dim=1)
        near_mass += (p * near(rows)).sum().item()
        site_mass += (p * site(rows)).sum().item()
        mass[i] = torch.stack([part.sum() for part in p.mean(0).tensor_split(edges[1:])])
    return mass, near_mass / tokens, site_mass / tokens


def minimal_masks(mass, share):
    """Fewest key blocks per row whose mass reaches `share` -> bool [blocks, blocks]."""
    order = mass.argsort(dim=1, descending=True)
    before = mass.gather(1, order).cumsum(1) - mass.gather(1, order)
    return torch.zeros_like(mass, dtype=torch.bool).scatter(1, order, before < share)


def predicates(grid):
    """Functions of a slice of query rows -> 0/1 [rows, N]: near in all three axes, and the same place."""
    frames, side = grid
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(side), torch.arange(side), indexing="ij")
    t, y, x = t.flatten(), y.flatten(), x.flatten()

    def near(rows):
        close = [(a[rows, None] - a[None]).abs() <= 2 for a in (t, y, x)]
        return (close[0] & close[1] & close[2]).float()

    def site(rows):
        return ((y[rows, None] == y[None]) & (x[rows, None] == x[None])).float()

    return near, site


class Probe:
    """Stands in for the self-attention of every block and measures at the calls it is told to."""

    def __init__(self, transformer, grid):
        self.grid, self.measuring, self.rows = grid, False, []
        for layer, block in enumerate(transformer.blocks):
            block.attn1.forward = self.wrap(layer, block.attn1, block.attn1.forward)

    def wrap(self, layer, attention, forward):
        def wrapped(x, source, rope=None):
            if self.measuring:
                self.measure(layer, attention, x[:1], rope)
            return forward(x, source, rope)
        return wrapped

    def measure(self, layer, attention, x, rope):
        q = rotate(attention.norm_q(attention.to_q(x)).unflatten(-1, (attention.heads, -1)), rope)[0]
        k = rotate(attention.norm_k(attention.to_k(x)).unflatten(-1, (attention.heads, -1)), rope)[0]
        near, site = predicates(self.grid)
        for head in range(attention.heads):
            mass, at_near, at_site = block_mass(q[:, head], k[:, head], q.shape[-1] ** -0.5, near, site)
            masks = {share: minimal_masks(mass, share) for share in (0.9, 0.95)}
            self.rows.append({"layer": layer, "head": head, "near": at_near, "site": at_site,
                              "density90": masks[0.9].float().mean().item(),
                              "density95": masks[0.95].float().mean().item(), "mask": masks[0.9]})


@torch.no_grad()
def run_prompt(model, caption, grid, steps, measured, seed):
    """Generates one clip; returns rows of the measured steps, the branch that reads the prompt."""
    transformer, text_encoder, _ = model
    sizes, (slots, cells) = transformer.sizes, grid
    probe = Probe(transformer, grid)
    ids = torch.tensor([CaptionTokenizer(sizes.vocab).encode(caption, sizes.text_len)])
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    context = text_encoder(torch.cat((ids, empty)))
    rope = stages.rope_of(range(slots), cells, 1, sizes.head_dim, "cpu")
    x = torch.randn(1, slots * cells ** 2, sizes.token_values, generator=torch.Generator().manual_seed(seed))
    levels = sampling.sigmas(steps, 3.0).tolist()
    rows = []
    for step in range(max(measured) + 1):
        probe.measuring, probe.rows = step in measured, []
        level = torch.full((1,), levels[step])
        given = stages.restore_order(transformer(x, level, context[:1], rope))
        probe.measuring = False
        free = stages.restore_order(transformer(x, level, context[1:], rope))
        x = x + (levels[step + 1] - levels[step]) * (free + 4.0 * (given - free))
        rows += [{"step": step, "seed": seed, "caption": caption} | row for row in probe.rows]
    for block in transformer.blocks:
        del block.attn1.forward
    return rows


def overlap(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


def similarity(rows, same, other):
    """Mean overlap per (layer, head) of masks that agree in key `same` and differ by `other`'s rule."""
    table = {}
    for a in rows:
        for b in rows:
            if (a["layer"], a["head"], a[same]) == (b["layer"], b["head"], b[same]) and other(a, b):
                table.setdefault((a["layer"], a["head"]), []).append(overlap(a["mask"], b["mask"]))
    return {key: sum(values) / len(values) for key, values in table.items()}


def report(rows, phases):
    """Per layer and head: means over prompts, early and late steps apart."""
    steps = similarity(rows, "caption", lambda a, b: b["step"] == a["step"] + 1)
    prompts = similarity(rows, "step", lambda a, b: a["caption"] < b["caption"])
    out = []
    for key in sorted({(r["layer"], r["head"]) for r in rows}):
        entry = {"layer": key[0], "head": key[1], "mask_overlap_steps": steps.get(key), "mask_overlap_prompts": prompts.get(key)}
        for phase, which in phases.items():
            mine = [r for r in rows if (r["layer"], r["head"]) == key and r["step"] in which]
            entry[phase] = {name: sum(r[name] for r in mine) / len(mine)
                            for name in ("density90", "density95", "near", "site")}
        out.append(entry)
    return out


def line_of(entry):
    """A row of the printed table; "-" where one prompt or step left nothing to compare."""
    early, late = entry["early"], entry["late"]
    steps, prompts = ("-" if x is None else f"{x:.2f}" for x in (entry["mask_overlap_steps"], entry["mask_overlap_prompts"]))
    return (f"{entry['layer']}.{entry['head']:<3} {early['density90']:>9.3f} {early['density95']:>9.3f} "
            f"{late['density90']:>9.3f} {late['density95']:>9.3f} {late['near']:>6.2f} {late['site']:>6.2f} "
            f"{steps:>6} {prompts:>8}")


def plot(table, path):
    """Bars of the density each head needs for 90 % of its mass, early and late."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    labels = [f"{e['layer']}.{e['head']}" for e in table]
    figure, axes = pyplot.subplots(2, 1, figsize=(max(8, len(table) * 0.35), 6), sharex=True)
    places = range(len(table))
    for offset, phase in ((-0.2, "early"), (0.2, "late")):
        axes[0].bar([p + offset for p in places], [e[phase]["density90"] for e in table], 0.4, label=phase)
    axes[0].set_ylabel("density for 90 % of mass")
    axes[0].legend()
    for name, label in (("mask_overlap_steps", "next step"), ("mask_overlap_prompts", "another prompt")):
        axes[1].plot(places, [e[name] for e in table], "o-", label=label)
    axes[1].set_ylabel("overlap of masks (IoU)")
    axes[1].set_ylim(0, 1)
    axes[1].legend()
    axes[1].set_xticks(list(places), labels, rotation=90, fontsize=7)
    axes[1].set_xlabel("layer.head")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/lacuna-shapes")
    parser.add_argument("--prompts", default="assets/prompts/eval.txt", help="a caption per line")
    parser.add_argument("--count", type=int, default=3, help="prompts to use (default 3)")
    parser.add_argument("--cells", type=int, default=24, help="rows of patches of 8 pixels (default 24: 192 pixels)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--json", default="out/laboratory.json")
    parser.add_argument("--plot", help="PNG to draw")
    args = parser.parse_args()
    model = folder.read_model(args.model)
    early, late = (1, 2), (args.steps - 6, args.steps - 5)
    lines = [line for line in pathlib.Path(args.prompts).read_text().splitlines() if line and not line.startswith("#")]
    rows = []
    for seed, caption in enumerate(lines[:args.count]):
        print(f"{seed + 1}/{args.count} {caption}", file=sys.stderr)
        rows += run_prompt(model, caption, (stages.CLIP_SLOTS, args.cells), args.steps, {*early, *late}, seed)
    table = report(rows, {"early": early, "late": late})
    path = pathlib.Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"tokens": stages.CLIP_SLOTS * args.cells ** 2, "block": BLOCK, "heads": table}, indent=1))
    if args.plot:
        plot(table, args.plot)
    print(f"{'head':>5} {'early 90':>9} {'early 95':>9} {'late 90':>9} {'late 95':>9} {'near':>6} {'site':>6} "
          f"{'steps':>6} {'prompts':>8}")
    for e in table:
        print(line_of(e))


if __name__ == "__main__":
    main()
