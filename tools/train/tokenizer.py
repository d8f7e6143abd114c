"""The tokenizer of the small model: a Unigram vocabulary made by hand, as a Hugging Face `tokenizer.json`.

One piece per word of the caption grammar, then every printable ASCII character and all 256 bytes, so that any
prompt becomes ids. Scores make a known word win over its letters and letters win over bytes.
"""
import json
import string

from tools.train import captions

PAD, EOS, BOS, UNK = 0, 1, 2, 3
WORD_SCORE, CHARACTER_SCORE, BYTE_SCORE = -1.0, -8.0, -12.0
SPACE = "\u2581"  # stands for a space, and opens every word


def pieces(vocab_size):
    """[[piece, score]] by id, filled up to `vocab_size` with pieces no text contains."""
    words = [SPACE + word for word in captions.VOCABULARY if word != ","] + [","]
    characters = [SPACE] + [chr(code) for code in range(33, 127) if chr(code) != ","]
    table = [["<pad>", 0.0], ["</s>", 0.0], ["<s>", 0.0], ["<unk>", 0.0]]
    table += [[word, WORD_SCORE] for word in words]
    table += [[character, CHARACTER_SCORE] for character in characters]
    table += [[f"<0x{byte:02X}>", BYTE_SCORE] for byte in range(256)]
    if len(table) > vocab_size:
        raise ValueError(f"tokenizer: {len(table)} pieces, expected at most {vocab_size}")
    return table + [[f"<extra_{i}>", -100.0] for i in range(vocab_size - len(table))]


def tokenizer_json(vocab_size):
    """The file's text. Special pieces and order are UMT5's: <pad>, </s>, <s>, <unk>."""
    special = [{"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, (piece, _) in enumerate(pieces(vocab_size)[:4])]
    def replace(pattern, content):
        return {"type": "Replace", "pattern": pattern, "content": content}

    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [replace({"String": c}, c.lower()) for c in string.ascii_uppercase]
                       + [replace({"Regex": " {2,}"}, " ")]},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [EOS], "tokens": ["</s>"]}}},
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": UNK, "vocab": pieces(vocab_size), "byte_fallback": True},
    }, ensure_ascii=False, indent=0)


class CaptionTokenizer:
    """Ids of captions of the grammar. Other text goes through a real tokenizer library, not through here."""

    def __init__(self, vocab_size):
        self.ids = {piece: i for i, (piece, _) in enumerate(pieces(vocab_size))}

    def encode(self, caption, length):
        """Ids of one caption, EOS at the end, padded to `length`."""
        ids = []
        for word in caption.split():
            ids.append(self.ids[SPACE + word.rstrip(",")])
            if word.endswith(","):
                ids.append(self.ids[","])
        ids = ids[:length - 1] + [EOS]
        return ids + [PAD] * (length - len(ids))
