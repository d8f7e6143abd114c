# SPDX-License-Identifier: Apache-2.0
"""Texts for tokenizer fixtures: a corpus to train on and prompts, in many scripts."""
import unicodedata

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
