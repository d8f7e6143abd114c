#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of byte-pair tokenizers made by transformers, and live parity against it.

Trains small byte-level vocabularies with the `tokenizers` library on text made here, in the forms
of Llama 3 (merges as pairs, ignore_merges, a template), CLIP (vocab.json and merges.txt, and the
tokenizer.json that transformers saves) and GPT-2 (merges as strings, unknown bytes, a space in
front), and records the ids of transformers' own classes.

  python3 bpe_fixture.py tests/data/tokenizer/bpe       # the committed fixture

It keeps ids of its own prompts, and hashes of ids of the 1,000 prompts that bytes.prompts.json
has. Live parity with larger vocabularies and more prompts, all ids kept:

  python3 bpe_fixture.py --full --vocab 8000 --prompts 20000 /tmp/fixture
  LACUNA_BPE_DATA=/tmp/fixture build/release/test_text --gtest_filter='BpeParity.*'

Needs: pip install 'transformers>=5'. Version 4 cuts CLIP's text by an expression without the
special tokens, and adds special tokens of plain configs with normalized = True.
"""
import argparse
import json
import os
import random

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from tokenizer_texts import corpus, prompts

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CLIP = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
        r"|[^\s\p{L}\p{N}]+")
CUT = 12  # max_length of the ids that are kept cut

TEMPLATE = ("<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the "
            "following aspects: 1. The main content and theme of the video.2. The color, shape, "
            "size, texture.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>")
OWN = [TEMPLATE.format("A cat walks on the grass, realistic style."), TEMPLATE.format(""),
       TEMPLATE.format(" <|eot_id|> <|begin_of_text|>\n\n\n"), "<|begin_of_text|>", "<|EOT_ID|> a",
       "a<|eot_id|>b<|eot_id", " <image> a", "a <image>", "a  <pad>  b", "<pad><image><pad>", "  <pad>",
       "<mask> a", "<MASK>", "x<mask>y", "\u00a0<pad>\u3000", "<|startoftext|>", "<|endoftext|>!!",
       "a<|endoftext|>b", "<|EndOfText|>", "!<|startoftext|>.", "<|startoftext|", "<unk>",
       "don't DON'T we'll We'LL I'M I'm they've THEY'VE you're he'd HE'D", "'s 't 'S 'T '\u017f 'x ''s '",
       "it\u2019s a dog''s life 'llama 'Rex're", "x 'vE", "!'s", "a'\u017fx", "\u212a'm 'ſs",
       "1234567 12 1,234.56 ½ ٣٤٥٦ Ⅷ 1a2b3", "a  \n  b", "a \n", "\n\n a", " \r\n \u2028 x", "!\r\n\n x",
       "a\t\tb\t c", "   a   ", "\ta", "\u0085a \u00a0b", "a\u200bb", "\u3000\u3000a", "...\n...\n\n",
       "a - b -- c --- d", "Ünï ÇÖDÉ ΟΔΥΣΣΕΥΣ ΣΑΣ Σ. İSTANBUL ǅ ẞ ﬀ", "e\u0301 \u00e9 a\u0301\u0323b",
       "\u1e9b\u0323 \u0344 \u0958 \u2126 \ufb1d \U0001d15e", "한국어 \u1112\u1161\u11ab", "カ\u3099 が",
       "a" * 3000, "ab" * 500, "ha" * 41 + "!" * 90, "\u0301" * 40, "🐱" * 30, " " * 200, "\n" * 31,
       "ЁЖИК ежик", "<|reserved_special_token_0|>", "a\x00b\x01\x7f", "\U000e0041\uffff\U0010ffff",
       "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft", "snow_case camelCase x=y+z;"]


def trained(vocab, texts, pre_tokenizer, normalizer=None, alphabet=True, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else [],
        special_tokens=[model["unk_token"]] if "unk_token" in model else [],
        end_of_word_suffix=model.get("end_of_word_suffix") or "")
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def llama3(folder, vocab, texts):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    file = trained(vocab, texts, pre)
    # Tokens that no merge makes, as Llama 3 has them: only ignore_merges finds them.
    del file["model"]["merges"][8::9]
    file["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                  "<|end_header_id|>", "<|eot_id|>", AddedToken("<image>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("<pad>", lstrip=True, rstrip=True, normalized=False),
                          AddedToken("<mask>", normalized=True)])
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin} $B:1",
                                      special_tokens=[(begin, tokenizer.token_to_id(begin))])])
    path = os.path.join(folder, "llama3.tokenizer.json")
    write(path, json.loads(tokenizer.to_str()))
    return PreTrainedTokenizerFast(tokenizer_file=path)


def gpt2(folder, vocab, texts):
    file = trained(vocab, [t for t in texts if t.isascii()], pre_tokenizers.ByteLevel(),
                   alphabet=False, unk_token="<unk>", fuse_unk=True)
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    path = os.path.join(folder, "gpt2.tokenizer.json")
    write(path, file)
    return PreTrainedTokenizerFast(tokenizer_file=path)


def clip(folder, vocab, texts):
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "),
                                       normalizers.Lowercase()])
    file = trained(vocab, texts, pre, normalizer, end_of_word_suffix="</w>")
    tokens = file["model"]["vocab"]
    for token in ["<|startoftext|>", "<|endoftext|>"]:
        tokens[token] = len(tokens)
    part = os.path.join(folder, "clip")
    os.makedirs(part, exist_ok=True)
    write(os.path.join(part, "vocab.json"), tokens)
    with open(os.path.join(part, "merges.txt"), "w") as f:
        f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in file["model"]["merges"]))
    special = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    write(os.path.join(part, "tokenizer_config.json"), {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "added_tokens_decoder": {
            str(tokens["<|startoftext|>"]): {"content": "<|startoftext|>", "normalized": True, **special},
            str(tokens["<|endoftext|>"]): {"content": "<|endoftext|>", "normalized": False, **special}}})
    tokenizer = CLIPTokenizer.from_pretrained(part)
    write(os.path.join(folder, "clip.tokenizer.json"), json.loads(tokenizer.backend_tokenizer.to_str()))
    return tokenizer


def write(path, value):
    with open(path, "w") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))


def fnv1a(ids):
    """32 bits of the ids as little-endian words."""
    value = 0x811c9dc5
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = (value ^ byte) * 0x01000193 & 0xffffffff
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--full", action="store_true", help="keep the ids of all prompts")
    parser.add_argument("--vocab", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=1000)
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    texts = list(corpus(random.Random(20), 20000 if args.full else 6000))
    shared = prompts(random.Random(21), args.prompts)
    made = {make.__name__: make(args.folder, args.vocab, texts) for make in [llama3, clip, gpt2]}

    def ids(text):
        return [t(text)["input_ids"] for t in made.values()]

    rows = [[text, ids(text), [t(text, truncation=True, max_length=CUT)["input_ids"]
                               for t in made.values()]]
            for text in OWN + (shared if args.full else [])]
    hashes = [] if args.full else [[fnv1a(i) for i in ids(text)] for text in shared]
    with open(os.path.join(args.folder, "prompts.json"), "w") as f:
        f.write('{"variants":' + json.dumps(list(made)) + ',\n"hashes":' +
                json.dumps(hashes, separators=(",", ":")) + ',\n"prompts":[\n')
        f.write(",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]}\n")
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(args.folder) for f in fs)
    print(f"{args.folder}: {total} bytes; transformers {transformers.__version__}, "
          f"tokenizers {tokenizers.__version__}")


if __name__ == "__main__":
    main()
