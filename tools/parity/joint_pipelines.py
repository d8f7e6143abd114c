#!/usr/bin/env python3
"""Live parity of the families whose text takes part in attention: diffusers' MochiPipeline and HunyuanVideoPipeline
against `lacuna generate`, end to end in fp32.

Builds tiny random checkpoints in the real folder layout with tokenizers trained here, runs diffusers, runs lacuna with the
same prompt and seed, and compares latents (relative L2 <= 1e-4) and frames (within one grey level). Each case must also
differ from every other one of its size, or it says nothing about what it is there for.

Of the first case of each family also: a run that is stopped and resumed gives the same bytes; attention with a mask that
keeps everything gives what dense attention gives.

With --attention METHOD both sides are sparse, the pipeline through lacuna.diffusers (docs/python.md), and must run the same
method at the same density in every call.

Needs what pipelines.py needs, without peft. Usage: joint_pipelines.py [--lacuna FILE] [--work DIR] [--attention METHOD] [CASE ...]
"""
import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import (AutoencoderKLHunyuanVideo, AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler,
                       HunyuanVideoPipeline, HunyuanVideoTransformer3DModel, MochiPipeline, MochiTransformer3DModel)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, T5Config,
                          T5EncoderModel, T5Tokenizer)

import bpe_fixture
import pipelines

PROMPT, NEGATIVE, SEED = "A small red ball rolls over wet grass near a caf\u00e9.", "blurry, low quality", 42
# Neither family cleans its prompts as Wan does.
UNTIDY = "  a  &lt;b&gt; caf&eacute; &amp;amp;\u3000 \u201cgrass\u201d\t stops \n"
LONG = "The small red ball rolls, then stops near the wet grass. " * 40
BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<pad>"
LIMIT, LEVELS = 1e-4, 1.0

# What a case may say beside its family; the defaults are the families' own (request()).
CASES = {
    "mochi": {},
    "mochi-tall": {"height": 112, "width": 48, "frames": 19, "steps": 5},
    "mochi-one-frame": {"frames": 1},
    "mochi-unguided": {"guidance": 1.0},
    "mochi-untidy": {"prompt": UNTIDY, "negative": "  low &amp;  quality "},
    "mochi-long": {"prompt": LONG, "negative": LONG[::-1]},
    "mochi-negative-empty": {"negative": ""},
    "mochi-zeros": {"negative": "", "force_zeros": True},
    "mochi-spiece": {"prompt": "  A \uff33mall\u3000red  ball near \u00bd of the gra\u017fs ", "spiece": True},
    "mochi-shifted": {"scheduler": {"shift": 3.0}},
    "hunyuan": {},
    "hunyuan-tall": {"height": 112, "width": 48, "frames": 25, "steps": 5},
    "hunyuan-one-frame": {"frames": 1},
    "hunyuan-true-guidance": {"guidance": 3.0, "embedded": 1.0},
    "hunyuan-negative-empty": {"guidance": 3.0, "negative": ""},
    "hunyuan-untidy": {"prompt": UNTIDY},
    "hunyuan-long": {"prompt": LONG, "guidance": 2.0, "negative": LONG[::-1]},
    "hunyuan-special": {"prompt": "<|eot_id|> a {} ball <|endoftext|> <pad><image>\n\n"},
    "hunyuan-newline": {"prompt": "\n\n  a ball"},
    "hunyuan-shifted": {"scheduler": {"shift": 2.0}},
    "hunyuan-no-guidance-input": {"guidance_embeds": False},
}


def template_tokens(tokenizer):
    before = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    return len(tokenizer(before)["input_ids"])

def llama_tokenizer():
    """Byte-level, of Llama 3's form, with as many merges as make the template the length that diffusers crops."""
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(bpe_fixture.LLAMA3), behavior="isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    text = DEFAULT_PROMPT_TEMPLATE["template"].replace("{}", "")
    for token in special:
        text = text.replace(token, "\n")
    for vocabulary in range(300, 1200):
        tokenizer = Tokenizer(models.BPE(ignore_merges=True))
        tokenizer.pre_tokenizer = pre
        tokenizer.train_from_iterator([text, "\n\n", " small red ball grass"], trainers.BpeTrainer(
            vocab_size=vocabulary, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
        tokenizer.add_special_tokens([BEGIN, END, *special, AddedToken("<image>", normalized=False),
                                      AddedToken(PAD, normalized=False)])
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B:1",
                                          special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))])])
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD,
                                          model_max_length=8192, padding_side="right")
        if template_tokens(wrapped) == DEFAULT_PROMPT_TEMPLATE["crop_start"]:
            return wrapped
    raise RuntimeError("no vocabulary gives the template the length that is cropped")

def clip_tokenizer(folder):
    return bpe_fixture.clip(str(folder), 500, [PROMPT, NEGATIVE, LONG] * 20)

def mochi(folder, spiece, **_):
    # From spiece.model transformers takes T5's ids whatever the file says.
    tokenizer = pipelines.train_tokenizer(folder, **({"bos_id": -1, "unk_id": 2} if spiece else {}))
    tokenizer.model_max_length = 256
    text = T5EncoderModel(T5Config(vocab_size=len(tokenizer) + 8, d_model=64, d_kv=16, num_heads=4, d_ff=128,
                                   num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=64, num_layers=3, pooled_projection_dim=48,
        in_channels=12, text_embed_dim=64, time_embed_dim=64, max_sequence_length=256)
    vae = AutoencoderKLMochi(encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 64, 64),
                             layers_per_block=(1, 1, 1, 1, 1))
    return MochiPipeline(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), pipelines.randomize(vae, 2),
                         pipelines.randomize(text, 1), tokenizer, pipelines.randomize(transformer, 3))

def hunyuan(folder, guidance_embeds, **_):
    tokenizer, tokenizer_2 = llama_tokenizer(), clip_tokenizer(folder)
    text = LlamaModel(LlamaConfig(
        vocab_size=len(tokenizer) + 8, hidden_size=64, intermediate_size=160, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}))
    text_2 = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer_2), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=48, bos_token_id=0, pad_token_id=1, eos_token_id=2))
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=64, num_layers=2, num_single_layers=2,
        num_refiner_layers=2, patch_size=2, patch_size_t=1, guidance_embeds=guidance_embeds, text_embed_dim=64,
        pooled_projection_dim=48, rope_axes_dim=(16, 24, 24))
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 16, 16), layers_per_block=1,
                                    norm_num_groups=4)
    return HunyuanVideoPipeline(
        pipelines.randomize(text, 1), tokenizer, pipelines.randomize(transformer, 3), pipelines.randomize(vae, 2),
        FlowMatchEulerDiscreteScheduler(shift=7.0), pipelines.randomize(text_2, 4), tokenizer_2)

def request(name):
    """The case with all that it leaves out."""
    is_mochi = name.startswith("mochi")
    case = {"prompt": PROMPT, "negative": NEGATIVE, "height": 64, "width": 96, "frames": 13 if is_mochi else 9, "steps": 4,
            "guidance": 4.5 if is_mochi else 1.0, "embedded": None if is_mochi else 6.0, "scheduler": {},
            "force_zeros": False, "spiece": False, "guidance_embeds": True} | CASES[name]
    if not case["guidance_embeds"]:
        case["embedded"] = None
    return case

def build(name, case, folder):
    """The pipeline of a case, saved in folder / name."""
    pipeline = (mochi if name.startswith("mochi") else hunyuan)(folder, guidance_embeds=case["guidance_embeds"], spiece=case["spiece"])
    if case["scheduler"]:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **case["scheduler"])
    if case["force_zeros"]:
        pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    model = folder / name
    shutil.rmtree(model, ignore_errors=True)
    pipeline.save_pretrained(model)
    if case["spiece"]:  # as older repositories have it
        (model / "tokenizer" / "tokenizer.json").unlink()
        shutil.copy(folder / "spiece.model", model / "tokenizer")
        pipeline.tokenizer = T5Tokenizer.from_pretrained(model / "tokenizer")
    if name == "hunyuan":  # as the public repository has it
        (model / "tokenizer_2" / "tokenizer.json").unlink()
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(folder / "clip" / file, model / "tokenizer_2" / file)
    return pipeline

def diffusers_run(pipeline, case, output_type):
    kwargs = {"prompt": case["prompt"], "height": case["height"], "width": case["width"], "num_frames": case["frames"],
              "num_inference_steps": case["steps"], "negative_prompt": case["negative"]}
    if isinstance(pipeline, MochiPipeline):
        kwargs["guidance_scale"] = case["guidance"]
    else:
        kwargs |= {"true_cfg_scale": case["guidance"], "guidance_scale": case["embedded"] or 6.0}
    with torch.no_grad():
        return pipeline(output_type=output_type, generator=torch.Generator().manual_seed(SEED), **kwargs).frames[0]

def command(lacuna, model, case, latents, *options):
    """Without --shift and --sampler: the folder says them."""
    words = [lacuna, "generate", "--model", model, "--prompt", case["prompt"], "--height", case["height"],
             "--width", case["width"], "--frames", case["frames"], "--steps", case["steps"],
             "--guidance", case["guidance"], "--seed", SEED, "--dtype", "f32", "--no-prompt-cache",
             "--latents", latents, *options]
    if case["guidance"] != 1.0:
        words += ["--negative-prompt", case["negative"]]
    if case["embedded"] is not None:
        words += ["--embedded-guidance", case["embedded"]]
    return [str(word) for word in words]

def relative(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))

def compare(name, case, folder, lacuna, attention):
    """What was measured, and diffusers' latents [channels, frames, height, width]."""
    pipeline = build(name, case, folder)
    with pipelines.sparse(pipeline, attention) as patch:
        latents = diffusers_run(pipeline, case, "latent").float().numpy()
    with pipelines.sparse(pipeline, attention):
        frames = diffusers_run(pipeline, case, "np")
    out, file, trace = folder / f"{name}-%04d.png", folder / f"{name}.latents.safetensors", folder / f"{name}.trace.json"
    options = ["--attention", attention, "--trace", trace] if attention is not None else []
    subprocess.run(command(lacuna, folder / name, case, file, "-o", out, "-q", *options), check=True)
    result = {"case": name, "latents_rel_l2": relative(pipelines.load_file(file)["latents"], latents),
              "frames": len(frames), "frames_max_levels": pipelines.levels_apart(out, frames)}
    ran, same = pipelines.compare_calls(patch, trace) if attention is not None else ({}, True)
    ok = same and result["latents_rel_l2"] <= LIMIT and result["frames_max_levels"] <= LEVELS
    return result | ran | {"ok": ok}, latents

def resumed(name, folder, lacuna):
    """Whether a run that is interrupted goes on to the bytes of one that is not."""
    case = request(name) | {"steps": 1000}
    whole, part = folder / f"{name}-whole.safetensors", folder / f"{name}-part.safetensors"
    begin = time.perf_counter()
    subprocess.run(command(lacuna, folder / name, case, whole, "--no-decode", "-q"), check=True)
    seconds, stopped = time.perf_counter() - begin, 0
    for share in (0.5, 0.7, 0.3, 0.9):  # of a machine with other work on it
        part.unlink(missing_ok=True)
        run = subprocess.Popen(command(lacuna, folder / name, case, part, "--no-decode", "-q"), stderr=subprocess.DEVNULL)
        time.sleep(share * seconds)
        run.send_signal(signal.SIGINT)
        run.wait()
        stopped = steps_done(part) if part.exists() else 0
        if 0 < stopped < case["steps"]:
            break
    subprocess.run([str(word) for word in (lacuna, "generate", "--model", folder / name, "--resume", part, "--no-decode",
                                           "--no-prompt-cache", "-q")], check=True)
    return {"case": f"{name} resumed after step {stopped} of {case['steps']}",
            "ok": 0 < stopped < case["steps"] and part.read_bytes() == whole.read_bytes()}


def steps_done(file):
    from safetensors import safe_open
    with safe_open(file, "np") as opened:
        return int(opened.metadata()["next_step"])

def masked(name, folder, lacuna, dense):
    """Attention that goes through masks, which keep everything."""
    file = folder / f"{name}-masked.safetensors"
    subprocess.run(command(lacuna, folder / name, request(name), file, "--no-decode", "-q", "--attention",
                           "haste:block=16,stride=8,top_p=1"), check=True)
    difference = relative(pipelines.load_file(file)["latents"], dense)
    return {"case": f"{name} with full masks", "latents_rel_l2": difference, "ok": difference <= LIMIT}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default="build/release/lacuna")
    parser.add_argument("--work", default="out/parity", type=pathlib.Path)
    parser.add_argument("--attention", help="compare sparse runs, e.g. haste:block=16,stride=8,top_p=0.6")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="one of: " + ", ".join(CASES) + " (default: all)")
    args = parser.parse_args()
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"case {unknown[0]}, expected one of: {', '.join(CASES)}")
    torch.set_num_threads(2)
    args.work.mkdir(parents=True, exist_ok=True)
    results, made = [], {}
    for name in args.cases or CASES:
        begin = time.perf_counter()
        result, latents = compare(name, request(name), args.work, args.lacuna, args.attention)
        alike = [other for other, theirs in made.items()
                 if theirs.shape == latents.shape and relative(latents, theirs) < 1e-3]
        if alike:
            result |= {"ok": False, "same_as": alike}
        made[name] = latents
        results.append(result | {"s": round(time.perf_counter() - begin, 1)})
        print(json.dumps(results[-1]), flush=True)
        if name in ("mochi", "hunyuan") and args.attention is None:
            for extra in (resumed(name, args.work, args.lacuna), masked(name, args.work, args.lacuna, latents)):
                results.append(extra)
                print(json.dumps(extra), flush=True)
    failed = sum(not result["ok"] for result in results)
    print(f"parity: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0

if __name__ == "__main__":
    sys.exit(main())
