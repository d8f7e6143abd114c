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

EXTRA_IDS = 10

WORDS = {
    "latin": "a an the red blue green golden small big cat dog horse bird dragon robot child woman "
             "man city street forest river mountain ocean beach desert castle train car boat jumps "
             "runs flies walks dances slowly quickly over under through across into camera pans "
             "zooms left right up down close wide shot cinematic light lighting sunset sunrise night "
             "rain snow fog neon reflection detailed realistic style oil painting film grain 4k 8k "
             "24 fps 35mm 1990s f/1.8 don't it's naïve café façade crème brûlée über Straße größer "
             "señor niño mañana façon œuvre cœur garçon Łódź żółw příliš žluťoučký kůň smörgåsbord "
             "Ångström fjörður İstanbul ığdır Việt Nam phở tiếng đường người thế giới",
    "cyrillic": "кот собака лошадь птица дракон красный синий зелёный маленький большой город улица "
                "лес река гора океан закат ночь дождь снег бежит летит танцует медленно быстро через "
                "камера свет їжак ґанок ўзбек Љубав Њу Џеп",
    "greek": "γάτα σκύλος άλογο πουλί δράκος κόκκινο μπλε πράσινο μικρό μεγάλο πόλη δρόμος δάσος "
             "ποτάμι βουνό ωκεανός ηλιοβασίλεμα νύχτα βροχή χιόνι ΐ ΰ ϊ",
    "arabic": "قطة كلب حصان طائر تنين أحمر أزرق أخضر صغير كبير مدينة شارع غابة نهر جبل محيط غروب ليل "
              "مطر ثلج يركض يطير ببطء بسرعة كاميرا ضوء مُحَمَّد",
    "hebrew": "חתול כלב סוס ציפור דרקון אדום כחול ירוק קטן גדול עיר רחוב יער נהר הר ים שקיעה לילה "
              "גשם שלג רץ עף שָׁלוֹם",
    "devanagari": "बिल्ली कुत्ता घोड़ा पक्षी लाल नीला हरा छोटा बड़ा शहर सड़क जंगल नदी पहाड़ समुद्र सूर्यास्त "
                  "रात बारिश बर्फ दौड़ता उड़ता धीरे क़लम ज़मीन",
    "thai": "แมว สุนัข ม้า นก มังกร สีแดง สีน้ำเงิน สีเขียว เล็ก ใหญ่ เมือง ถนน ป่า แม่น้ำ ภูเขา "
            "ทะเล พระอาทิตย์ตก กลางคืน ฝน หิมะ น้ำ กำ",
    "han": "一只 猫 狗 马 鸟 龙 红色 蓝色 绿色 小 大 城市 街道 森林 河流 山 海洋 日落 夜晚 雨 雪 跑 飞 慢慢 快速 "
           "镜头 光 电影 画质 静态 最差质量 低质量 残缺 多余的手指 畸形 背景 臺灣 龍 貓",
    "kana": "ねこ いぬ うま とり あかい あおい みどり ちいさい おおきい まち もり かわ やま うみ ゆうひ よる あめ ゆき "
            "カメラ ライト ドラゴン ロボット シネマ パン ガラス ヴァイオリン ﾊﾝｶｸ ｶﾞ ﾊﾟ",
    "hangul": "고양이 개 말 새 용 빨간 파란 초록 작은 큰 도시 거리 숲 강 산 바다 석양 밤 비 눈 달린다 난다 천천히 카메라 빛",
}
WORDS = {k: v.split() for k, v in WORDS.items()}
SPACED = {"latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "hangul"}
PUNCT = list(".,;:!?-()'\"/%&+*#@") + ["...", " - ", "…", "—", "–", "“", "”", "‘", "’", "«", "»",
                                      "。", "，", "、", "！", "？", "「", "」", "؟", "،", "।"]
EMOJI = ["🐱", "🐕", "🌊", "🔥", "👍", "👍🏽", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "❤️", "☃", "©️", "®", "™",
         "1️⃣", "🇩🇪", "🇯🇵", "🧑🏿‍🦰", "🫠", "𝔘𝔫𝔦", "𝟙𝟚", "🀄"]
ODD_SPACE = ["\u00a0", "\u2003", "\u2009", "\u200b", "\u202f", "\u3000", "\t", "\n", "\r\n", "  ",
             "   ", "\u2028", "\u0085", "\ufeff", "\u1680", "\u205f", "\u00ad", "\u2060"]
CONTROL = ["\x00", "\x01", "\x07", "\x08", "\x1b", "\x1f", "\x7f", "\x80", "\x9f", "\u200e", "\u200f",
           "\u202a", "\u202e", "\u2066", "\ufff9", "\ufffc", "\ufffd", "\ue000", "\U000e0041"]
COMPAT = ["Ｆｕｌｌｗｉｄｔｈ", "１２３", "＜s＞", "（ａ）", "ﬁlm", "ﬂy", "ﬀ", "²", "½", "№", "℃", "Ⅷ", "ⅳ", "㎏", "㍿", "①",
          "ª", "º", "µ", "…", "‥", "ﷺ", "ﻻ", "ﺍﻟ", "ǆ", "ŉ", "ſ", "´", "¨", "｡", "ﾞ", "㈱", "⑳", "𝒜",
          "ﬁ\u0301", "ａ\u0301", "²\u0301", "ﾊ\u3099", "Å", "Ω", "豈", "︙", "~", "〜", "～", "\u0344"]
MARKS = ["\u0301", "\u0302", "\u0308", "\u0323", "\u0327", "\u0303", "\u20d7", "\ufe0f", "\u200d",
         "\u0489", "\u0651", "\u064b", "\u3099", "\u094d", "\u0e33", "\u093c", "\u1ab0", "\u0345"]
SPECIAL = ["<extra_id_0>", "<extra_id_9>", "<extra_id_10>", "</s>", "<pad>", "<unk>", "<s>", "<0x41>",
           "<0xE2>", "▁", "▁▁", "▁the", "<extra_id_0", "extra_id_0>", "<<pad>>", "</s></s>",
           "<extra_id_0><extra_id_1>", "<EXTRA_ID_0>"]
RARE = ["ཀཁག", "ကခဂ", "კატა", "կատու", "አቢሲ", "ᏣᎳᎩ", "ᚠᚢᚦ", "𐍈", "𓀀", "𠀀", "ʘ", "☭", "⸘", "ꙮ", "ߐ", "ಕನ್ನಡ",
        "தமிழ்", "తెలుగు", "বাংলা", "ਪੰਜਾਬੀ", "ગુજરાતી", "සිංහල", "ខ្មែរ", "ລາວ", "ᠮᠣᠩᠭᠣᠯ"]


def sentence(rng, script, words):
    joiner = " " if script in SPACED else ""
    picked = rng.choices(WORDS[script], k=words)
    text = joiner.join(picked)
    if rng.random() < 0.3:
        text = text.capitalize()
    if rng.random() < 0.05:
        text = text.upper()
    return text + rng.choice(["", ".", "!", "。", ","])


def corpus(rng, lines):
    scripts = list(WORDS)
    weights = [6] + [1] * (len(scripts) - 1)
    for _ in range(lines):
        script = rng.choices(scripts, weights)[0]
        text = sentence(rng, script, rng.randint(3, 14))
        if rng.random() < 0.2:
            text = text.replace(" ", rng.choice([", ", " - ", ": "]), 1)
        yield text


def prompts(rng, count):
    """A mix in which every odd thing also stands next to ordinary words."""
    scripts = list(WORDS)
    odd = [EMOJI, ODD_SPACE, CONTROL, COMPAT, SPECIAL, RARE, PUNCT]
    fixed = ["", " ", "   ", "\n", "\u3000", "▁", " ▁ ", "a", " a ", "</s>", "a</s>", "</s> a",
             "<unk>", "<pad><pad>", "\x00", "\u0301", "\u200d", "\ufffd", "🐱", "  two  spaces  ",
             "a \u3000 b", "é", "e\u0301", "e\u0302\u0301", "ﬁ\u0301", "각", "각", "が",
             "か\u3099", "ｶﾞ", "ａ\u0301", "a\r\nb", "\r\n\u0301", "<extra_id_0> \u2028 a",
             "a <extra_id_3>b", "\t<extra_id_1>\t", " <s> a", "a▁", "▁a", "a ▁ b", "<0x0A>", "☃☃ ☃",
             "क़", "ड\u093c", "नी", "ก\u0e33", "1\ufe0f\u20e3", "©\ufe0f", "A\u030a", "\u212b"]
    out = list(fixed)
    while len(out) < count:
        parts = []
        for _ in range(rng.randint(1, 3)):
            parts.append(sentence(rng, rng.choice(scripts), rng.randint(1, 5)))
            roll = rng.random()
            if roll < 0.55:
                parts.append(rng.choice(rng.choice(odd)))
            if roll < 0.15:
                parts.append(rng.choice(rng.choice(odd)))
        text = rng.choice(["", " "]).join(parts)
        roll = rng.random()
        if roll < 0.12:
            text = unicodedata.normalize("NFD", text)
        elif roll < 0.16:
            text = unicodedata.normalize("NFKD", text)
        elif roll < 0.24 and text:
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(MARKS) + text[at:]
        elif roll < 0.30:
            text = "".join(chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x2000, 0x2c00),
                                           rng.randrange(0x3000, 0xd7ff), rng.randrange(0xf900, 0xffff)]))
                           for _ in range(rng.randint(1, 12)))
        out.append(text)
    return out


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
