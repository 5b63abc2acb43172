"""Text on which tokenizers differ: fixed cases, then random ones from a seed. All are bytes."""

import random

_DIGITS = ["0", "7", "42", "123", "1234567890", "3.14159", "1,000,000", "0x1F", "1e-9", "½ ⅓ ¼", "²³¹",
           "٣٤٥", "१२३", "๑๒๓", "Ⅳ ⅷ", "①②③", "１２３", "𝟙𝟚𝟛", "a1b2c3", "12 34  56", "1'000", "߀߁߂", "12345678901234567890" * 5]

_EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷🇯🇵", "❤️", "❤", "1️⃣", "🧑🏿‍🚀 to the 🌕", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🤷‍♀️🤷🏻‍♂️", "☺︎☺️", "🫠🪿🫨", "a😀b", "😀😀😀😀 😀"]

_COMBINING = ["é", "e\u0301", "n\u0303o", "a\u0300\u0301\u0302\u0303\u0304", "Z̸̢͎a̵l̶g̷o̵", "\u0301", " \u0301x", "ก็็็็็", "क्ष", "각", "\u1112\u1161\u11ab",
              "ﬁ ﬂ ﬀ", "İı", "ẞß", "ﷺ", "a\u200db", "a\u200cb", "\u202eabc\u202c", "\u2066x\u2069", "A\u030a vs Å vs Å", "x\ufe0f", "1\u20e3"]

_CODE = ["int main(int argc, char** argv) {\n\treturn 0;\n}\n", "def f(x):\n    return x**2  # square\n",
         "SELECT * FROM t WHERE a >= 'it''s' AND b <> \"q\";", "<div class=\"a\">&amp;&#x27;</div>",
         "for (auto& [k, v] : m) std::cout << k << \"\\n\";", "\\begin{align}\n  x &= \\frac{1}{2} \\\\\n\\end{align}",
         "curl -sS 'https://example.org/?q=a%20b&c=d#e' | jq '.[0].x'", "if [[ $x =~ ^[a-z]+$ ]]; then echo \"${x@Q}\"; fi",
         "{\"a\":[1,2.5e-3,null,true],\"b\":\"\\u00e9\\n\"}", "a\t\tb\n\n\n\tc\r\n", "x=y=z==w!=v===u;", "lambda*args,**kw:None",
         "fn main() { println!(\"{:?}\", vec![1u8; 3]); }", "λ x → x ∘ f ≠ ∅ ∧ ∀y∈ℝ", "#!/bin/sh\n# -*- coding: utf-8 -*-",
         "0b1010_1010 + 0o777 - 0xDEAD_beef", "camelCaseWordsAndSNAKE_CASE_WORDS", "__init__.py::test[a-b]", "@decorator\nclass C(B, metaclass=M): ..."]

_SCRIPTS = {
    "Latin": "The quick brown fox; naïve façade, Straße", "Greek": "Ελληνική γλώσσα, ἄνθρωπος", "Cyrillic": "Съешь ещё этих мягких булок",
    "Armenian": "Բարեւ աշխարհ", "Hebrew": "שלום עולם בְּרֵאשִׁית", "Arabic": "مرحبا بالعالم ١٢٣ بِسْمِ", "Syriac": "ܫܠܡܐ ܥܠܡܐ",
    "Thaana": "ހެލޯ ދުނިޔެ", "Devanagari": "नमस्ते दुनिया क्षत्रिय", "Bengali": "হ্যালো বিশ্ব", "Gurmukhi": "ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ",
    "Gujarati": "નમસ્તે દુનિયા", "Oriya": "ନମସ୍କାର ବିଶ୍ୱ", "Tamil": "வணக்கம் உலகம்", "Telugu": "హలో ప్రపంచం", "Kannada": "ಹಲೋ ಪ್ರಪಂಚ",
    "Malayalam": "ഹലോ ലോകം", "Sinhala": "හෙලෝ වර්ල්ඩ්", "Thai": "สวัสดีชาวโลก", "Lao": "ສະບາຍດີຊາວໂລກ", "Tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "Myanmar": "မင်္ဂလာပါ ကမ္ဘာ", "Georgian": "გამარჯობა მსოფლიო Ⴀ", "Hangul": "안녕하세요 세계", "Ethiopic": "ሰላም ልዑል ፩፪፫",
    "Cherokee": "ᎣᏏᏲ ᎡᎶᎯ", "Canadian": "ᐊᐃᓐᖓᐃ ᓄᓇᕐᔪᐊᖅ", "Ogham": "᚛ᚑᚌᚐᚋ᚜", "Runic": "ᚠᚢᚦᚨᚱᚲ", "Tagalog": "ᜃᜓᜋᜓᜐ᜔ᜆ", "Khmer": "សួស្តី​ពិភពលោក",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ", "Han": "你好，世界！漢字與汉字", "Hiragana": "こんにちは、せかい", "Katakana": "コンニチハ・ﾊﾛｰ", "Bopomofo": "ㄅㄆㄇㄈ",
    "Yi": "ꆈꌠꉙ", "Javanese": "ꦲꦏ꧀ꦱꦫ", "Balinese": "ᬅᬓ᭄ᬱᬭ", "Tifinagh": "ⴰⵣⵓⵍ", "Coptic": "ⲁⲃⲅⲇ", "Glagolitic": "ⰀⰁⰂ", "Gothic": "𐌰𐌱𐌲",
    "Cuneiform": "𒀀𒁀", "Hieroglyphs": "𓀀𓁐", "Vai": "ꕙꔤ", "NKo": "ߒߞߏ", "Adlam": "𞤀𞤣𞤤𞤢𞤥", "Braille": "⠓⠑⠇⠇⠕", "Deseret": "𐐔𐐯𐑅",
    "Linear B": "𐀀𐀁", "Osage": "𐓏𐓘", "Math": "𝒜𝔅ℂ𝐱⃗",
}

_INVALID = [b"\x80", b"\xff\xfe", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"abc\xc3(", b"\xed\xa0\x80", b"\xc0\xaf",
            b"\xf8\x88\x80\x80\x80", b"a\x80b\xbfc", b"\xe2\x82\xe2\x82\xac", b"\xf0\x9f\x98\x80\x80", bytes(range(128, 256)),
            b"valid then \xf0\x28\x8c\x28", b"\xc3\xa9\xc3", b" \xa0 ", b"\x00\xff\x00", b"\xe0\x80\x80", b"\xed\xbf\xbf text"]

_SPACES = [" ", "  ", "   x", "x   ", "\t", "\n", "\r\n", "\n\n\n", " \n ", "\t \t", "a \n\n b", "\u00a0", "\u2003x\u2003", "\u3000", "\u200b", "\u2028\u2029",
           "\x0b\x0c", "\x85", " \t\n\r \t\n\r", "word  word   word    word", "\n \n  \n   x", " 1", "  1", " !", "  !", " é", "  日", "\ufeffBOM"]

_APOSTROPHES = ["don't I'll we've they're he'd I'm it's", "DON'T I'LL WE'VE THEY'RE", "'s't're've'm'll'd", "' s", "''s", "'S", "’s don’t", "o'clock 'tis rock'n'roll", "'ſ", "x'y'z'"]

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "<|im_start", "im_end|>", "<repo_name>", "<file_sep>x", "<|begin_of_text|>",
            "<|eot_id|>", "[INST]", "<s></s>", "<unk>", "<|im_start|><|im_start|>", "a<|im_end|>b", "<jupyter_text>", "<gh_stars>5", "<empty_output>", "<reponame>"]

_WHITESPACE = [9, 10, 11, 12, 13, 32, 32, 32, 0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x200B, 0x2028, 0x2029, 0x202F, 0x205F,
               0x3000, 0x180E, 0x1C, 0x1F, 0xFEFF]
# First code points of blocks and other edges.
_EDGES = [0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x1123F, 0x11F02, 0x11F50, 0x1342F, 0x1B132, 0x1D2C0, 0x1DF25, 0x1E030,
          0x1E4D0, 0x2B739, 0x2EBF0, 0x31350, 0x323AF, 0x323B0, 0xE000, 0xD7FF, 0xFFFD, 0x10FFFF]


def _runs():
    for piece in ("a", " ", "\n", "0", "-", "=", "😀", "é", "ab", "\t", " a", "日", "\u0301", "1 ", "!?", "\x00"):
        for count in (2, 3, 7, 16, 33, 100, 1000):
            yield piece * count


def _controls():
    for code in list(range(32)) + [127]:
        yield chr(code)
        yield f"a{chr(code)}b {chr(code)}{chr(code)} c"


def fixed_cases():
    """[bytes]"""
    texts = [""]
    for group in (_DIGITS, _EMOJI, _COMBINING, _CODE, _SPACES, _APOSTROPHES, _SPECIAL, _SCRIPTS.values()):
        texts += group
        texts += [f" {text}" for text in group] + [f"{text}\n{text}" for text in group]
    texts += _runs()
    texts += _controls()
    texts += [" ".join(_SCRIPTS.values()), "".join(_SCRIPTS.values()), "\n".join(_CODE)]
    cases = [text.encode("utf-8") for text in texts] + _INVALID
    cases += [bytes([byte]) for byte in range(256)]
    # Every script with bytes missing at the front and at the end.
    cases += [text.encode("utf-8")[1:-1] for text in _SCRIPTS.values()]
    return cases


def _character(rng):
    while True:
        code = rng.randrange(rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000]))
        if not 0xD800 <= code < 0xE000:
            return chr(code).encode("utf-8")


def _piece(rng, words):
    kind = rng.random()
    if kind < 0.22:
        return bytes([rng.randrange(128)])
    if kind < 0.36:
        return chr(rng.choice(_WHITESPACE)).encode("utf-8") * rng.choice([1, 1, 2, 5])
    if kind < 0.60:
        return rng.choice(words).encode("utf-8")
    if kind < 0.66:
        return chr(rng.choice(_EDGES)).encode("utf-8")
    if kind < 0.82:
        return _character(rng)
    if kind < 0.92:
        return bytes([rng.choice(b"abcdefgh tieaon\n0123 ")]) * rng.randint(1, 9)
    return rng.choice(_INVALID + [bytes([rng.randrange(256)])])


def _decodes_above_unicode(case):
    """A four-byte form above U+10FFFF is refused by LoopServe and undefined in llama.cpp."""
    for i in range(len(case) - 3):
        if 0xF4 <= case[i] <= 0xF7 and all(0x80 <= byte < 0xC0 for byte in case[i + 1:i + 4]):
            if (case[i] & 7) << 18 | (case[i + 1] & 63) << 12 > 0x10FFFF:
                return True
    return False


def random_cases(count, seed):
    """[bytes], the same for the same seed."""
    rng = random.Random(seed)
    words = _DIGITS[:-1] + _EMOJI + _COMBINING + _APOSTROPHES + _SPECIAL + list(_SCRIPTS.values()) + _CODE
    words += ["hello", " world", "--", "…", "`$+<=>^~|", "<tool_call>", "naïve", "\r\n", "日本語"]
    cases = []
    while len(cases) < count:
        case = b"".join(_piece(rng, words) for _ in range(rng.randint(1, rng.choice([4, 12, 40]))))
        if not _decodes_above_unicode(case):
            cases.append(case)
    return cases


def cases(count, seed):
    """At least `count`: all fixed ones, filled up with random ones."""
    fixed = [case for case in fixed_cases() if not _decodes_above_unicode(case)]
    return fixed + random_cases(max(0, count - len(fixed)), seed)
