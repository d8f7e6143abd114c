#!/usr/bin/env python3
"""Live parity: the real diffusers WanPipeline against `lacuna generate`, end to end in fp32.

Builds tiny random checkpoints in the real folder layout (Wan2.1, Wan2.2 A14B with two experts,
Wan2.2 TI2V-5B), runs diffusers, runs lacuna with the same prompt and seed, and compares latents
(relative L2 <= 1e-4) and frames (within one grey level).

Needs Python packages that the build never does: torch, diffusers, transformers, sentencepiece,
protobuf, ftfy. Usage: pipelines.py [--lacuna build/release/lacuna] [--work out/parity] [CASE ...]
"""
import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.numpy import load_file
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

PROMPT = "A small red ball rolls over  wet grass &amp; stops\u3000near a caf\u00e9"
NEGATIVE = "blurry, low quality"
SEED, STEPS, GUIDANCE, SHIFT = 42, 4, 5.0, 5.0


def train_tokenizer(folder):
    """A T5-style Unigram tokenizer trained on text made here; returns it as transformers loads it."""
    import sentencepiece as spm
    words = "a the small red blue ball square rolls moves over wet grass near stops blurry low quality cafe amp".split()
    rng = np.random.default_rng(0)
    text = folder / "corpus.txt"
    text.write_text("\n".join(" ".join(rng.choice(words, 8)) for _ in range(2000)), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=120, model_type="unigram",
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        hard_vocab_limit=False, minloglevel=2)
    model = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size())]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def randomize(module, seed):
    """Initialisers leave modulation tables tiny and norms at one; every tensor should matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() == 1 and ("norm" in name or name.endswith("gamma")) and name.endswith(("weight", "gamma")):
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.endswith("gamma"):
                parameter.copy_(1 + 0.1 * noise)
            elif "scale_shift_table" in name:
                parameter.copy_(0.3 * noise)
            else:
                fan_in = max(1, int(np.prod(parameter.shape[1:])))
                parameter.copy_(noise / fan_in ** 0.5)
    return module.eval()


def transformer(channels, seed):
    return randomize(WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=channels,
        out_channels=channels, text_dim=64, freq_dim=256, ffn_dim=192, num_layers=2,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=1024), seed)


def vae(kind, seed):
    common = dict(base_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
                  temperal_downsample=[False, True, True])
    if kind == "2.1":
        model = AutoencoderKLWan(z_dim=4, latents_mean=[.1, -.2, .3, -.4], latents_std=[1.5, .5, 2., 1.], **common)
    else:
        model = AutoencoderKLWan(z_dim=6, decoder_base_dim=12, is_residual=True, in_channels=12, out_channels=12,
                                 patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4,
                                 latents_mean=[.1, -.2, .3, -.4, 0., .2], latents_std=[1.5, .5, 2., 1., 1.1, .9], **common)
    return randomize(model, seed)


def text_encoder(tokenizer, **sizes):
    return randomize(UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer) + 8, num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        **sizes)), 1)


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                   flow_shift=SHIFT, num_train_timesteps=1000)


def build(name, tokenizer):
    text = text_encoder(tokenizer, d_model=64, d_kv=16, num_heads=4, d_ff=128)
    scheduler = unipc()
    if name == "wan2.1":
        return WanPipeline(tokenizer, text, vae("2.1", 2), scheduler, transformer(4, 3))
    if name == "wan2.2-a14b":
        return WanPipeline(tokenizer, text, vae("2.1", 2), scheduler, transformer(4, 3), transformer(4, 4),
                           boundary_ratio=0.875)
    return WanPipeline(tokenizer, text, vae("2.2", 2), scheduler, transformer(6, 3), expand_timesteps=True)


def compare(name, pipeline, folder, lacuna, height=64, width=96, num_frames=9, steps=STEPS, decode=True):
    """Relative error of the latents, and of the frames in grey levels unless decode is False."""
    model = folder / name
    pipeline.save_pretrained(model, safe_serialization=True)
    kwargs = dict(prompt=PROMPT, negative_prompt=NEGATIVE, height=height, width=width, num_frames=num_frames,
                  num_inference_steps=steps, guidance_scale=GUIDANCE)
    if name == "wan2.2-a14b":
        kwargs["guidance_scale_2"] = 3.0

    def run(output_type):
        with torch.no_grad():
            return pipeline(output_type=output_type, generator=torch.Generator().manual_seed(SEED), **kwargs).frames

    begin = time.perf_counter()
    latents = run("latent").float().numpy()
    result = {"model": name, "tokens": latents[0, 0].size // 4, "diffusers_s": round(time.perf_counter() - begin, 1)}
    out = folder / f"{name}-%04d.png"
    latents_file = folder / f"{name}.latents.safetensors"
    command = [lacuna, "generate", "--model", model, "--prompt", PROMPT, "--negative-prompt", NEGATIVE,
               "--height", height, "--width", width, "--frames", num_frames, "--steps", steps, "--guidance", GUIDANCE,
               "--shift", SHIFT, "--seed", SEED, "--dtype", "f32", "--no-prompt-cache", "--latents", latents_file]
    command += ["-o", out] if decode else ["--no-decode"]
    if name == "wan2.2-a14b":
        command += ["--guidance-low", 3.0]
    begin = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True)
    result["lacuna_s"] = round(time.perf_counter() - begin, 1)
    ours = load_file(latents_file)["latents"].reshape(latents.shape)
    result["latents_rel_l2"] = float(np.linalg.norm(ours - latents) / np.linalg.norm(latents))
    result["ok"] = result["latents_rel_l2"] <= 1e-4
    if decode:
        from PIL import Image
        result["frames_max_levels"] = max(
            float(np.abs(np.asarray(Image.open(str(out) % (i + 1)), dtype=np.float32) - np.floor(frame * 255)).max())
            for i, frame in enumerate(run("np")[0]))
        result["ok"] = result["ok"] and result["frames_max_levels"] <= 1
    print(json.dumps(result), flush=True)
    return result["ok"]


def main(doc, cases):
    """cases: {name: a function from the tokenizer to the arguments of compare() beside the name}"""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default="build/release/lacuna")
    parser.add_argument("--work", default="out/parity", type=pathlib.Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="one of: " + ", ".join(cases) + " (default: all)")
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in cases]
    if unknown:
        parser.error(f"case {unknown[0]}, expected one of: {', '.join(cases)}")
    torch.set_num_threads(2)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.work)
    results = []
    for name in args.cases or cases:
        results.append(compare(name, folder=args.work, lacuna=args.lacuna, **cases[name](tokenizer)))
    print(f"parity: {sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(__doc__, {name: lambda tokenizer, name=name: {"pipeline": build(name, tokenizer)}
                            for name in ("wan2.1", "wan2.2-a14b", "wan2.2-ti2v-5b")}))
