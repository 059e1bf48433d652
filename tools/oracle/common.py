"""What the recorders share: paths, JSON lines, log-probabilities, greedy continuations, strings to tokenize."""

import json
import math
import random
import unicodedata
from pathlib import Path

import torch
import texts

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "reference"
SMALLEST_GAP = 2e-4  # below that a different order of summation could choose another token

torch.set_num_threads(2)


def write_lines(path, rows):
    """One JSON object a line, UTF-8, no spaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")


def write_json(path, value, indent=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def digits(value, count=9):
    """The number with that many significant digits."""
    return float(f"{float(value):.{count}g}")


@torch.no_grad()
def logprobs(model, tokens):
    """Log-probabilities (natural) of tokens 2..n: logits in fp32, log-softmax in double."""
    logits = model(torch.tensor([tokens])).logits[0, :-1].double()
    chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return [digits(value) for value in chosen]


@torch.no_grad()
def greedy(model, prompt, count, penalty=None):
    """Greedy continuation by Transformers' generate; (tokens, gap between best and second at each step)."""
    options = {} if penalty is None else {"repetition_penalty": penalty}
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         do_sample=False, max_new_tokens=count, output_scores=True, return_dict_in_generate=True,
                         **options)
    new = out.sequences[0, len(prompt):].tolist()
    gaps = []
    for scores in out.scores:  # after the penalty
        best = torch.topk(scores[0].double(), 2).values
        gaps.append(digits(best[0] - best[1], 6))
    return new, gaps


def usable(model, new, gaps, count):
    """No early end, and no step that rounding could decide."""
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    return len(new) == count and not ends & set(new) and min(gaps) > SMALLEST_GAP


def splitmix64(x):
    """The finalizer of splitmix64 at state x: a 64-bit hash."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


# Characters whose class (letter, digit, white space, mark) splitters get wrong first.
ODD = ("\u0000\u0001\u0007\u0008\u000b\u000c\u001b\u001c\u001d\u001e\u001f\u007f\u0085\u00a0\u00ad\u1680\u180e\u2000\u2003"
       "\u2009\u200b\u200c\u200d\u200e\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd\ufffc\ue000\ufdd0\U0001f3fb\U000e0041"
       "\u00aa\u00b2\u00bd\u0660\u0966\u2167\u3007\u3021\u4e00\u9fff\ua66f\u0e33\u0e49\u0301\u0308\u20dd\uff11\U0001d7d8\u017f\u212a\u0130\u00df")

FIXED = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\t", "\t\t\t", " \n", "\n ", " \n \n ", "\u3000", "\u00a0 \u00a0",
    "a", " a", "a ", "  a", "a  b", "a   b    c", "\ta", "a\tb", "a\nb", "a \n b", "a\r\nb\r\n", "x" * 200, " " * 50, "\n" * 30, "a" + " " * 17 + "b",
    "don't", "DON'T", "I'm", "we'll've", "it's", "IT'S", "'s", "''s", "'t 're", "they'd", "’s", "it’s", "'ſ", "'ſt", "'LL", "'K", "o'clock", "rock'n'roll",
    "0", "00", "007", "1234", "12345678901234567890", "3.14159", "1,000,000", "-42", "1e-9", "0x1F", "a1b2c3", "1st 2nd", " 123", "12 34", "½", "²³", "Ⅷ", "١٢٣٤", "१२३", "１２３４", "²", "10²", "1½", "𝟘𝟙",
    "naïve", "nai\u0308ve", "café", "cafe\u0301", "Å", "A\u030a", "\u212b", "q\u0307\u0323", "q\u0323\u0307", "ﬁ", "ℌ", "각", "\u1100\u1161\u11a8", "é" * 10, "e\u0301" * 10, "\u0301", " \u0301a", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "😀", "😀😀", "👨‍👩‍👧‍👦", "👋🏽", "❤️", "❤️‍🔥", "🇨🇭", "🇯🇵🇺🇸", "1️⃣", "☕️ time", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "a😀b", " 😀 ", "✅✅", "👩🏿‍🚀",
    "你好", "你好，世界！", "我有3个苹果。", "“引号”", "《书名》", "——……", "你好 world", "中文English混排123", "。", "、", "（一）", "繁體字與简体字", "こんにちは", "カタカナ", "한국어", "ﾊﾝｶｸ",
    "สวัสดี", "ภาษาไทย ๑๒๓", "مرحبا", "السلام عليكم ورحمة الله", "שָׁלוֹם", "नमस्ते", "தமிழ்", "Привет", "ПРИВЕТ, как дела?", "Γειά", "İstanbul", "ıI", "Straße", "ǅ",
    "...", "!!!", "?!", "---", "***", "____", "`code`", "```\ncode\n```", "a.b.c", "a/b\\c", "<html>", "</p>\n", "{}", "[]", "()", "=>", "!=", "/* x */", "// x\n", "#!/bin/sh\n", "@user", "$HOME", "100%", "a&b", "~", "^", "\\n", "\"quoted\"", "a_b_c", "CamelCaseWord", "snake_case_word", "kebab-case-word", "http://example.org/a?b=c&d=1#e", "me@example.org", "...\n\n...", "!\n", "! \n", ".\r\n", "x.\n\n\ny", " .", "  .", "\n.", " !a", "?\n ?",
    "    return x", "\treturn x;\n}", "if (a && b) {\n    c();\n}\n", "for(;;){}", "a=b+c*d", "  \n  \n", "x\n    y\n        z", "\n\n  x", " \t \n\t x", "a\u200bb", "a\u00a0b", "a\u3000b", "\ufeffa", "a\u2028b\u2029c", "a\u0085b", "a\u001cb", "\u180e x", "a\u0000b",
    "The quick brown fox jumps over the lazy dog.", "length", " length", "Length", " Length", "LENGTH", " responses", "hello world", "Hello, World!", "supercalifragilisticexpialidocious",
]


def random_unicode(rng, count):
    """Assigned characters of the planes 0 and 1, no surrogates."""
    out = []
    while len(out) < count:
        c = chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x250, 0x3000), rng.randrange(0x3000, 0xFFFE),
                            rng.randrange(0x10000, 0x1FB00)]))
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            out.append(c)
    return "".join(out)


def strings(special, count=1000):
    """`count` different strings, the same for the same `special` (the family's special tokens)."""
    rng = random.Random(20240607)
    words = " ".join(texts.ALL).split(" ")
    joined = "\n".join(texts.ALL)
    found = dict.fromkeys(FIXED)
    for s in special:
        for text in (s, s + s, " " + s, s + " ", "a" + s + "b", s[:-1], s[1:], s + "\n", "\n" + s + "\n\n", s.upper(), s + "你好", s + "'s", s[:3] + s):
            found.setdefault(text)

    def spaces():
        return "".join(rng.choice([" ", " ", "\n", "\t", "\r\n", "  ", "\r", "\u00a0", "\u3000"]) for _ in range(rng.randrange(1, 9)))

    def piece():
        a = rng.randrange(len(joined) - 120)
        return joined[a:a + rng.randrange(1, 110)]

    makers = [
        piece, piece, piece,
        lambda: " ".join(rng.choice(words) for _ in range(rng.randrange(1, 16))),
        lambda: "".join(rng.choice([rng.choice(words), spaces(), str(rng.randrange(10 ** rng.randrange(1, 9)))]) for _ in range(9)),
        lambda: "".join(rng.choice([rng.choice(ODD), rng.choice("aB 1.,\n'"), rng.choice(words)]) for _ in range(12)),
        lambda: random_unicode(rng, rng.randrange(1, 24)),
        lambda: "".join(rng.choice([piece()[:20], rng.choice(special), spaces()]) for _ in range(6)),
        lambda: "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randrange(1, 60))),
        lambda: "".join(rng.choice("'sStTdDmM rReElLvV1\n ") for _ in range(rng.randrange(2, 30))),
        lambda: "".join(rng.choice(["👩", "👨", "\u200d", "🏽", "❤", "\ufe0f", "🇨", "🇭", "😀", " ", "💻"]) for _ in range(rng.randrange(1, 12))),
        lambda: "".join(rng.choice("aeiouAOUnc") + rng.choice(["", "\u0301", "\u0308", "\u0323", "\u0327\u0301"]) for _ in range(rng.randrange(1, 16))),
    ]
    while len(found) < count:
        found.setdefault(rng.choice(makers)())
    return list(found)[:count]


CONVERSATIONS = [
    [("user", "Hello!")],
    [("user", "Write an article of more than 2,000 words about lighthouses.")],
    [("system", "You are a careful editor."), ("user", "Shorten this: it is, as it were, a long text.")],
    [("system", ""), ("user", "Is an empty system line kept?")],
    [("user", "1: first\n2: second\n3:"), ("assistant", "third"), ("user", "And the fourth?")],
    [("system", "Answer in Chinese."), ("user", "What is bread made of?"), ("assistant", "面粉、水和盐。"), ("user", "还有呢？")],
    [("user", "写一篇关于秋天的文章。")],
    [("user", "  spaces before and after  \n")],
    [("user", "\n\nnew lines first\r\n\r\nand last\n\n")],
    [("user", "code:\n```python\nprint('hi')\n```"), ("assistant", "It prints hi.\n"), ("user", "👨‍👩‍👧‍👦 ok ✅")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")],
    [("system", "You are a helpful assistant."), ("user", "naïve cafe\u0301 ½")],
    [("user", "")],
    [("user", "Don't stop."), ("assistant", "")],
    [("system", "Line one.\nLine two.\n"), ("user", "12345 67890"), ("assistant", " leading space")],
    [("user", texts.ENGLISH[2]), ("assistant", texts.ENGLISH[5])],
    [("system", texts.CHINESE[1]), ("user", texts.CHINESE[0])],
    [("user", texts.CODE[1])],
]


def messages(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


def tokens_rows(tokenizer, special):
    return [{"text": s, "tokens": tokenizer.encode(s, add_special_tokens=False)} for s in strings(special)]


def chat_rows(tokenizer):
    rows = []
    for conversation in CONVERSATIONS:
        for prompt in (True, False):
            m = messages(conversation)
            text = tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=prompt)
            tokens = tokenizer.apply_chat_template(m, tokenize=True, add_generation_prompt=prompt)
            assert tokens == tokenizer.encode(text, add_special_tokens=False)
            rows.append({"messages": m, "add_generation_prompt": prompt, "text": text, "tokens": tokens})
    return rows


def finite(values):
    assert all(math.isfinite(v) for v in values)
    return values
