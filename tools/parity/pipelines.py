#!/usr/bin/env python3
"""Live parity: the real diffusers pipelines against `lacuna generate`, end to end in fp32.

Builds tiny random checkpoints in the real folder layout (Wan2.1, Wan2.2 A14B with two experts,
Wan2.2 TI2V-5B from text and from a picture, Wan2.2 I2V-A14B from one and from two pictures, Wan2.1
I2V and FLF2V with CLIP), runs diffusers, runs lacuna with the same prompt and seed, and compares
latents (relative L2 <= 1e-4) and frames (within one grey level). The image-to-video networks are
also read in the names of the original code.

Then the same with LoRA files in the names of diffusers, of the original code and of trainers that
flatten them, one for every network and one for each of two experts.

Needs Python packages that the build never does: torch, diffusers, transformers, peft, sentencepiece,
protobuf, ftfy. Usage: pipelines.py [--lacuna build/release/lacuna] [--work out/parity] [CASE ...]

With --attention METHOD both sides are sparse, the pipeline through lacuna.diffusers (docs/python.md), and must run the
same method at the same density in every call.
"""
import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import (AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline,
                       WanTransformer3DModel)
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch
from transformers import (CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, T5Tokenizer, UMT5Config,
                          UMT5EncoderModel)

PROMPT = "A small red ball rolls over  wet grass &amp; stops\u3000near a caf\u00e9"
NEGATIVE = "blurry, low quality"
SEED, STEPS, GUIDANCE, SHIFT = 42, 4, 5.0, 5.0


def train_tokenizer(folder, bos_id=2, unk_id=3):
    """A T5-style Unigram tokenizer trained on text made here; returns it as transformers loads it."""
    import sentencepiece as spm
    words = "a the small red blue ball square rolls moves over wet grass near stops blurry low quality cafe amp".split()
    rng = np.random.default_rng(0)
    text = folder / "corpus.txt"
    text.write_text("\n".join(" ".join(rng.choice(words, 8)) for _ in range(2000)), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=120, model_type="unigram",
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, bos_id=bos_id, unk_id=unk_id,
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


def transformer(channels, seed, pictures=False, **image):
    """With `pictures` behind the latent a mask of four channels and an encoded video; `image`: sizes of image keys."""
    return randomize(WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64,
        in_channels=2 * channels + 4 if pictures else channels, out_channels=channels, text_dim=64, freq_dim=256,
        ffn_dim=192, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=1024,
        **image), seed)


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


def clip(seed):
    """A small encoder of pictures as large as the real one's: 257 rows of 48."""
    config = CLIPVisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3,
                              image_size=224, patch_size=14, hidden_act="gelu")
    return randomize(CLIPVisionModel(config), seed)


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
    if name == "wan2.2-ti2v-5b":
        return WanPipeline(tokenizer, text, vae("2.2", 2), scheduler, transformer(6, 3), expand_timesteps=True)
    if name.startswith("wan2.2-i2v-a14b"):
        return WanImageToVideoPipeline(tokenizer, text, vae("2.1", 2), scheduler, transformer=transformer(4, 3, True),
                                       transformer_2=transformer(4, 4, True), boundary_ratio=0.9)
    if name in ("wan2.1-i2v", "wan2.1-flf2v"):
        positions = 514 if name == "wan2.1-flf2v" else None
        network = transformer(4, 3, True, image_dim=48, added_kv_proj_dim=128, pos_embed_seq_len=positions)
        return WanImageToVideoPipeline(tokenizer, text, vae("2.1", 2), scheduler, CLIPImageProcessor(), clip(5), network)
    return WanImageToVideoPipeline(tokenizer, text, vae("2.2", 2), scheduler, transformer=transformer(6, 3),
                                   expand_timesteps=True)


def picture(path, height, width, phase=0.0):
    """Waves of three colours, saved as a PNG; returns it as load_image would."""
    from PIL import Image
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9.0 + y / 17.0 + phase), np.cos(x / 5.0 - phase), np.sin(y / 7.0) * np.cos(x / 11.0 + phase)]
    image = Image.fromarray(np.round(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))
    image.save(path)
    return image


MODULES = {"attn1.to_q": "self_attn.q", "attn1.to_v": "self_attn.v", "attn1.to_out.0": "self_attn.o",
           "attn2.to_k": "cross_attn.k", "attn2.to_q": "cross_attn.q", "ffn.net.0.proj": "ffn.0",
           "ffn.net.2": "ffn.2"}
IMAGE_MODULES = {"attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img"}
OTHERS = {"attn1.to_k": "self_attn.k", "attn2.to_v": "cross_attn.v", "attn2.to_out.0": "cross_attn.o"}


def lora_tensors(model, naming, seed):
    """Pairs of rank 3, large enough to matter, with an alpha of 2 where the naming has one."""
    generator = torch.Generator().manual_seed(seed)
    weights = model.state_dict()
    tensors = {}
    # What a file leaves out must stay as it is, but of flat names diffusers wants all.
    modules = MODULES | OTHERS if naming == "flat" else MODULES
    if "blocks.0.attn2.add_k_proj.weight" in weights:
        modules = modules | IMAGE_MODULES
    for block in range(len(model.blocks)):
        for module, original in modules.items():
            out, inner = weights[f"blocks.{block}.{module}.weight"].shape
            stem, down, up = {
                "diffusers": (f"transformer.blocks.{block}.{module}", "lora_A", "lora_B"),
                "original": (f"diffusion_model.blocks.{block}.{original}", "lora_down", "lora_up"),
                "flat": (f"lora_unet_blocks_{block}_{original.replace('.', '_')}", "lora_down", "lora_up"),
            }[naming]
            tensors[f"{stem}.{down}.weight"] = torch.randn(3, inner, generator=generator) / inner ** 0.5
            tensors[f"{stem}.{up}.weight"] = torch.randn(out, 3, generator=generator) / 3 ** 0.5
            if naming != "diffusers":
                tensors[f"{stem}.alpha"] = torch.tensor(2.0)
            if naming == "original":
                tensors[f"{stem}.diff_b"] = 0.1 * torch.randn(out, generator=generator)
    return tensors


def loras_of(name, pipeline, folder):
    """What to try: a label, files for diffusers as (file, scale, of transformer_2), options of lacuna."""
    files = {}
    for seed, naming in enumerate(("diffusers", "original", "flat")):
        files[naming] = folder / f"{name}-{naming}.lora.safetensors"
        save_torch(lora_tensors(pipeline.transformer, naming, seed), files[naming])
    if pipeline.transformer_2 is not None:
        high, low = files["original"], files["diffusers"]
        return [("lora-high-low", [(high, 1.0, False), (low, 0.5, True)],
                 ["--lora-high", high, "--lora-low", f"{low}:0.5"]),
                ("lora-both", [(low, 1.0, False), (low, 1.0, True)], ["--lora", low])]
    return [(f"lora-{naming}", [(file, 0.7, False)], ["--lora", f"{file}:0.7"]) for naming, file in files.items()]


def sparse(pipeline, attention):
    """The pipeline's runs inside use `attention`; without one they are stock."""
    if attention is None:
        return contextlib.nullcontext()
    import lacuna.diffusers
    return lacuna.diffusers.enable(pipeline, attention)


def calls_of(trace):
    return sorted((c["step"], c["layer"], c["branch"], c["expert"], c["method"], round(c["qk_density"], 9)) for c in trace)


def compare_calls(patch, trace):
    """What ran in the patched pipeline, and whether the same ran in `lacuna generate`, which wrote the file `trace`."""
    calls = calls_of(patch.session.trace)
    return ({"calls": len(calls), "density": float(np.mean([c[-1] for c in calls]))},
            calls == calls_of(json.loads(trace.read_text())["calls"]))


def levels_apart(pattern, frames):
    """The largest difference of a pixel, in grey levels, between PNG files and frames [F, H, W, 3] in 0..1."""
    from PIL import Image
    return max(
        float(np.abs(np.asarray(Image.open(str(pattern) % (i + 1)), dtype=np.float32) - np.floor(frame * 255)).max())
        for i, frame in enumerate(frames))


def compare(label, pipeline, model, lacuna, height=64, width=96, num_frames=9, steps=STEPS, decode=True,
            loras=(), options=(), attention=None, last=False):
    """Whether latents agree, and frames unless decode is False; and diffusers' latents. `model` is the saved pipeline."""
    kwargs = dict(prompt=PROMPT, negative_prompt=NEGATIVE, height=height, width=width, num_frames=num_frames,
                  num_inference_steps=steps, guidance_scale=GUIDANCE)
    if pipeline.transformer_2 is not None:
        kwargs["guidance_scale_2"] = 3.0
    for i, (file, scale, second) in enumerate(loras):
        pipeline.load_lora_weights(str(file), adapter_name=f"a{i}", load_into_transformer_2=second)
        (pipeline.transformer_2 if second else pipeline.transformer).set_adapters([f"a{i}"], [scale])
    image = model.with_name(f"{label}.first.png")
    if isinstance(pipeline, WanImageToVideoPipeline):  # of the video's proportions, which it stretches a picture to
        kwargs["image"] = picture(image, 3 * height // 2, 3 * width // 2)
    last_image = model.with_name(f"{label}.last.png")
    if last:
        kwargs["last_image"] = picture(last_image, 2 * height, 2 * width, phase=1.0)

    def run(output_type):
        with torch.no_grad():
            return pipeline(output_type=output_type, generator=torch.Generator().manual_seed(SEED), **kwargs).frames

    begin = time.perf_counter()
    with sparse(pipeline, attention) as patch:
        latents = run("latent").float().numpy()
    result = {"model": label, "tokens": latents[0, 0].size // 4, "diffusers_s": round(time.perf_counter() - begin, 1)}
    out = model.with_name(f"{label}-%04d.png")
    latents_file = model.with_name(f"{label}.latents.safetensors")
    command = [lacuna, "generate", "--model", model, "--prompt", PROMPT, "--negative-prompt", NEGATIVE,
               "--height", height, "--width", width, "--frames", num_frames, "--steps", steps, "--guidance", GUIDANCE,
               "--shift", SHIFT, "--seed", SEED, "--dtype", "f32", "--no-prompt-cache", "--latents", latents_file,
               *options]
    command += ["-o", out] if decode else ["--no-decode"]
    if pipeline.transformer_2 is not None:
        command += ["--guidance-low", 3.0]
    if "image" in kwargs:
        command += ["--image", image]
    if last:
        command += ["--last-image", last_image]
    trace = model.with_name(f"{label}.trace.json")
    if attention is not None:
        command += ["--attention", attention, "--trace", trace]
    begin = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True)
    result["lacuna_s"] = round(time.perf_counter() - begin, 1)
    ours = load_file(latents_file)["latents"].reshape(latents.shape)
    result["latents_rel_l2"] = float(np.linalg.norm(ours - latents) / np.linalg.norm(latents))
    result["ok"] = result["latents_rel_l2"] <= 1e-4
    if attention is not None:
        ran, same = compare_calls(patch, trace)
        result |= ran | {"ok": result["ok"] and same}
    if decode:
        with sparse(pipeline, attention):
            frames = run("np")[0]
        result["frames_max_levels"] = levels_apart(out, frames)
        result["ok"] = result["ok"] and result["frames_max_levels"] <= 1
    if loras:
        pipeline.unload_lora_weights()
    print(json.dumps(result), flush=True)
    return result["ok"], latents


NAMES = [("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
         ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
         ("condition_embedder.time_proj", "time_projection.1"),
         ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
         ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
         ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
         ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
         ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
         ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
         ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"), ("proj_out", "head.head"),
         ("attn1.to_out.0", "self_attn.o"), ("attn2.to_out.0", "cross_attn.o"), ("attn1.to_", "self_attn."),
         ("attn2.to_", "cross_attn."), ("attn2.add_k_proj", "cross_attn.k_img"), ("attn2.add_v_proj", "cross_attn.v_img"),
         ("attn2.norm_added_k", "cross_attn.norm_k_img"), ("attn1.norm", "self_attn.norm"),
         ("attn2.norm", "cross_attn.norm"), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("norm2", "norm3")]


def with_original_networks(pipeline, model, folder):
    """The saved pipeline with its transformers in the original code's names and config."""
    import shutil
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in model.iterdir():
        if not part.name.startswith("transformer"):
            (folder / part.name).symlink_to(part.resolve())
    for part in ("transformer", "transformer_2"):
        network = getattr(pipeline, part)
        if network is None:
            continue
        (folder / part).mkdir()
        c = network.config
        (folder / part / "config.json").write_text(json.dumps(
            {"_class_name": "WanModel", "model_type": "i2v" if c.pos_embed_seq_len is None else "flf2v", "dim": 128,
             "num_heads": c.num_attention_heads, "num_layers": c.num_layers, "ffn_dim": c.ffn_dim, "freq_dim": c.freq_dim,
             "in_dim": c.in_channels, "out_dim": c.out_channels, "text_len": 512, "text_dim": c.text_dim, "eps": c.eps}))
        tensors = {}
        for name, value in network.state_dict().items():
            name = name.replace("scale_shift_table", "modulation" if name.startswith("blocks") else "head.modulation")
            for ours, theirs in NAMES:
                if ours == "norm2" and not name.split(".")[2:3] == ["norm2"]:
                    continue
                name = name.replace(ours, theirs)
            tensors[name] = value.contiguous()
        save_torch(tensors, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def compare_all(name, pipeline, folder, lacuna, attention, with_loras=False, with_original=False, **sizes):
    """The model without LoRA, then, if dense, with each, which must change what is made, and under other names."""
    model = folder / name
    pipeline.save_pretrained(model, safe_serialization=True)
    ok, plain = compare(name, pipeline, model, lacuna, attention=attention, **sizes)
    results = [ok]
    if with_original and attention is None:
        original = with_original_networks(pipeline, model, folder / f"{name}-original")
        results.append(compare(f"{name}-original", pipeline, original, lacuna, **sizes)[0])
    for label, loras, options in loras_of(name, pipeline, folder) if with_loras and attention is None else ():
        ok, latents = compare(f"{name}-{label}", pipeline, model, lacuna, loras=loras, options=options, **sizes)
        results.append(ok and np.linalg.norm(latents - plain) > 0.01 * np.linalg.norm(plain))
    return results


def main(doc, cases):
    """cases: {name: a function from the tokenizer to the arguments of compare_all() beside the name}"""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default="build/release/lacuna")
    parser.add_argument("--work", default="out/parity", type=pathlib.Path)
    parser.add_argument("--attention", help="compare sparse runs, e.g. haste:block=16,stride=8,top_p=0.6")
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
        results += compare_all(name, folder=args.work, lacuna=args.lacuna, attention=args.attention, **cases[name](tokenizer))
    print(f"parity: {sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    def case(name):
        pictures = "i2v-a14b" in name or name in ("wan2.1-i2v", "wan2.1-flf2v")
        last = "last" in name or name == "wan2.1-flf2v"
        return lambda tokenizer: {"pipeline": build(name, tokenizer), "last": last, "with_original": pictures,
                                  "with_loras": not ("image" in name or last)}

    sys.exit(main(__doc__, {name: case(name) for name in (
        "wan2.1", "wan2.2-a14b", "wan2.2-ti2v-5b", "wan2.2-ti2v-5b-image", "wan2.2-i2v-a14b", "wan2.2-i2v-a14b-last",
        "wan2.1-i2v", "wan2.1-flf2v")}))
