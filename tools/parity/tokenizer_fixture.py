#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer fixtures made by the reference implementations, and live parity against them.

Trains small unigram models with SentencePiece on text made here, converts them with
transformers, and records what transformers' slow (SentencePiece) and fast (tokenizers) T5
tokenizers make of 1,000 prompts in many scripts.

  python3 tokenizer_fixture.py tests/data/tokenizer       # the committed fixture, under 400 KB

Live parity with larger models, the full nmt_nfkc map (too big to commit) and more prompts:

  python3 tokenizer_fixture.py --full --vocab 8000 --prompts 20000 /tmp/fixture
  LACUNA_TOKENIZER_DATA=/tmp/fixture build/release/test_text --gtest_filter='TokenizerParity.*'

Needs: pip install 'transformers<5' sentencepiece protobuf tiktoken. Version 5 has no slow T5
tokenizer any more; its pre-tokenizer is covered by the `fast5` variant.
"""
import argparse
import json
import os
import random
import shutil
import tempfile
import unicodedata

import sentencepiece as spm
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2 as pb
from transformers import T5Tokenizer
from transformers.convert_slow_tokenizer import convert_slow_tokenizer

from tokenizer_texts import COMPAT, corpus, prompts

EXTRA_IDS = 10


def rules_tsv(texts, path):
    """The rows of nmt_nfkc that concern the alphabet of `texts`: the whole map is 240 KB."""
    chars = set("".join(texts)) | set(map(chr, range(0x20, 0x250)))
    for text in list(texts):
        chars |= set(unicodedata.normalize("NFD", text))
    chars |= set(map(chr, range(0xff01, 0xff9f))) | set(map(chr, range(0xfb00, 0xfb07)))
    rules = {}
    for c in chars:
        o = ord(c)
        if o in (9, 10, 13, 0xa0, 0x1680, 0x200b, 0x200e, 0x200f, 0x2028, 0x2029, 0x2581, 0xfeff,
                 0xfffd) or 0x2000 <= o <= 0x200a or o in (0x202f, 0x205f, 0x3000):
            if o not in (0x2581, 0xfffd):
                rules[c] = " "
        elif o < 32 or 0x7f <= o <= 0x9f or o == 0xad:
            rules[c] = ""
        elif unicodedata.normalize("NFKC", c) != c:
            rules[c] = unicodedata.normalize("NFKC", c)
    for c in chars:  # compositions: every decomposed spelling of a composed letter
        nfd, nfc = unicodedata.normalize("NFD", c), unicodedata.normalize("NFC", c)
        if len(nfd) > 1 and len(nfc) == 1:
            rules[nfd] = nfc
        if len(nfd) > 2 and len(unicodedata.normalize("NFC", nfd[:-1])) == 1:
            rules[unicodedata.normalize("NFC", nfd[:-1]) + nfd[-1]] = nfc
    rules.pop("\0", None)
    with open(path, "w") as f:
        for source, target in sorted(rules.items()):
            f.write(" ".join("%X" % ord(c) for c in source) + "\t" +
                    " ".join("%X" % ord(c) for c in target) + "\n")


def train(folder, name, texts, vocab, byte_fallback, tsv=None, t5_ids=False):
    path = os.path.join(folder, name + ".txt")
    with open(path, "w") as f:
        f.write("\n".join(texts) + "\n")
    ids = dict(pad_id=0, eos_id=1, bos_id=-1, unk_id=2) if t5_ids else dict(
        pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    norm = dict(normalization_rule_tsv=tsv) if tsv else dict(normalization_rule_name="nmt_nfkc")
    spm.SentencePieceTrainer.train(
        input=path, model_prefix=os.path.join(folder, name), model_type="unigram", vocab_size=vocab,
        byte_fallback=byte_fallback, character_coverage=0.995, hard_vocab_limit=False,
        pad_piece="<pad>", minloglevel=2, num_threads=1, **ids, **norm)
    model = os.path.join(folder, name + ".model")
    proto = pb.ModelProto()
    proto.ParseFromString(open(model, "rb").read())
    proto.trainer_spec.input[:] = []  # no local paths in fixtures
    proto.trainer_spec.model_prefix = ""
    proto.normalizer_spec.normalization_rule_tsv = ""
    open(model, "wb").write(proto.SerializeToString())
    return model


def with_byte_fallback(model, on, path):
    proto = pb.ModelProto()
    proto.ParseFromString(open(model, "rb").read())
    proto.trainer_spec.byte_fallback = on
    if not on:  # the library refuses byte pieces without fallback
        for piece in proto.pieces:
            if piece.type == pb.ModelProto.SentencePiece.BYTE:
                piece.type = pb.ModelProto.SentencePiece.CONTROL
    open(path, "wb").write(proto.SerializeToString())
    return path


def as_version_5(fast):
    """The pipeline that T5Tokenizer of transformers 5 builds: WhitespaceSplit before Metaspace."""
    fast = json.loads(json.dumps(fast))
    fast["normalizer"] = fast["normalizer"]["normalizers"][0]
    fast["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
                                                                   fast["pre_tokenizer"]]}
    return fast


class References:
    """Ids by every reference for one spiece.model."""

    def __init__(self, model, folder, name):
        self.model = model
        slow = T5Tokenizer(model, extra_ids=EXTRA_IDS, legacy=True)
        fast = json.loads(convert_slow_tokenizer(slow).to_str())
        # T5TokenizerFast registers its special tokens on top of the conversion.
        backend = tokenizers.Tokenizer.from_str(json.dumps(fast))
        backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False)
                                    for t in ["</s>", "<unk>", "<pad>"] +
                                    [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]])
        self.fast_json = json.loads(backend.to_str())
        has_bytes = any(e[0] == "<0x00>" for e in self.fast_json["model"]["vocab"])
        self.variants = {"slow": slow, "fast": backend,
                         "fast5": tokenizers.Tokenizer.from_str(
                             json.dumps(as_version_5(self.fast_json)))}
        if has_bytes:
            off = with_byte_fallback(model, False, os.path.join(folder, name + "-off.model"))
            self.variants["slow_other"] = T5Tokenizer(off, extra_ids=EXTRA_IDS, legacy=True)
            other = json.loads(json.dumps(self.fast_json))
            other["model"]["byte_fallback"] = True
            self.variants["fast_other"] = tokenizers.Tokenizer.from_str(json.dumps(other))

    def ids(self, text):
        out = {}
        for name, tokenizer in self.variants.items():
            if name.startswith("slow"):
                out[name] = tokenizer(text)["input_ids"]
            else:
                out[name] = tokenizer.encode(text).ids
        return out


def pack(references, texts):
    """One line per prompt: text, the distinct id lists, and which list each variant has."""
    lines = []
    for text in texts:
        lists, which = [], []
        for ids in references.ids(text).values():
            if ids not in lists:
                lists.append(ids)
            which.append(lists.index(ids))
        lines.append([text, lists, which])
    return {"variants": list(references.variants), "prompts": lines}


def dump(value, path):
    with open(path, "w") as f:
        if "prompts" in value:
            f.write('{"variants":' + json.dumps(value["variants"]) + ',\n"prompts":[\n')
            f.write(",\n".join(json.dumps(p, ensure_ascii=False, separators=(",", ":"))
                               for p in value["prompts"]))
            f.write("\n]}\n")
        else:
            json.dump(value, f, ensure_ascii=False, separators=(",", ":"))


def write(out, full, vocab, count):
    os.makedirs(out, exist_ok=True)
    texts = list(corpus(random.Random(20), 20000 if full else 6000))
    asked = prompts(random.Random(21), count)
    with tempfile.TemporaryDirectory() as folder:
        tsv = None
        if not full:
            tsv = os.path.join(folder, "rules.tsv")
            rules_tsv(texts + asked[:300] + COMPAT, tsv)
        for name, size, fallback, t5_ids, part in [("bytes", vocab, True, False, 1.0),
                                                   ("plain", vocab // 2, False, True, 0.15)]:
            model = train(folder, name, texts, size, fallback, tsv, t5_ids)
            references = References(model, folder, name)
            shutil.copyfile(model, os.path.join(out, name + ".spiece.model"))
            dump(references.fast_json, os.path.join(out, name + ".tokenizer.json"))
            dump(pack(references, asked[:int(count * (1.0 if full else part))]),
                 os.path.join(out, name + ".prompts.json"))
    total = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
    print(f"{out}: {total} bytes; transformers {transformers.__version__}, "
          f"tokenizers {tokenizers.__version__}, sentencepiece {spm.__version__}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--full", action="store_true", help="the whole nmt_nfkc map")
    parser.add_argument("--vocab", type=int, default=1400)
    parser.add_argument("--prompts", type=int, default=1000)
    args = parser.parse_args()
    write(args.folder, args.full, args.vocab, args.prompts)


if __name__ == "__main__":
    main()
