"""What parity is tried on: conversations and texts that tokenizers and templates trip over."""

from __future__ import annotations

from typing import Any

from edgeadapt.chat_template import Message

ODDITIES = {
    "empty": "",
    "spaces": "  two before, two  between, two after  ",
    "tabs and newlines": "a\tb\n\n\nc\r\nd\re \n f\x0b\x0cg",
    "rare separators": "a\u00a0b\u2002c\u2003d\u3000e\u2028f\u2029g\u0085h\u1680i",
    "invisible": "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg",
    "byte order mark first": "\ufeffabc",
    "composed and decomposed": "é e\u0301 Å A\u030a ḍ̇ d\u0307\u0323 ﬁ ﬀ Ⅳ ½ ²",
    "many marks": "Z\u0351\u036b\u0343\u032a\u0302a\u0336\u0321l\u0338\u034ego\u0321",
    "emoji": "🙂👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪1️⃣☺︎☺️",
    "scripts": "Grüße Здравствуйте Γειά σου שלום مرحبا नमस्ते สวัสดี 안녕하세요 こんにちは 你好",
    "joined letters": "क्षि ক্ষ தமிழ் ខ្មែរ ཨོཾ ማዕረግ",
    "jamo": "\u1112\u1161\u11ab \ud55c ㅎㅏㄴ",
    "right to left": "\u202eabc\u202c \u2067العربية\u2069 abc \u200fdef",
    "beyond the basic plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𒀀 𐍈 𠮷 \U0001f9ff",
    "private and unassigned": "\ue000 \U000f0000 \ufffd \ufffe \U0010ffff \u0378",
    "controls": "a\x01b\x02c\x07d\x08e\x1bf\x7fg\x9fh",
    "digits": "0 12 345 6789 1234567 ٣٤٥ १२३ 3.14159 1,000,000 1e-5 0x1F",
    "contractions": "I'm you're he'd we've they'll it's don't I'M YOU'RE l’été it’s",
    "code": 'def f(x):\n    return {"a": [x**2, not x]}  # ¶\n\n\n\n',
    "repeats": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ----------------======== \n\n\n\n\n\n\n\n      x",
    "case pairs": "İıſK ǅ ß ẞ Σσς",
    "words": "Hello world, hello World! HELLO-world_hello/world@example.com",
}  # fmt: skip
"""Texts by what is odd about them. NUL and lone surrogates are left out: C strings end at the
first, and UTF-8 has no place for the others."""


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


_CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
"""The tool that is on offer in one of the conversations."""

CHATS: dict[str, list[Message]] = {
    "one question": [_user("What is the capital of France?")],
    "system": [{"role": "system", "content": "Answer briefly."}, _user("Why is the sky blue?")],
    "several turns": [
        _user("Name a colour."), _assistant("Red."), _user("Another."), _assistant("Blue."),
        _user("And one more, please."),
    ],
    "empty turn": [_user(""), _assistant(""), _user("Are you there?")],
    "only spaces": [_user("   "), _assistant("\n"), _user(" ")],
    "empty system": [{"role": "system", "content": ""}, _user("Hello")],
    "ends with an answer": [_user("Say ok."), _assistant("ok")],
    "two questions": [_user("First."), _user("Second.")],
    "tool call": [
        _user("How is the weather in Köln?"),
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "name": "weather", "content": '{"celsius": 21}'},
    ],
    "markup": [_user("{{ 7 * 7 }} {% if x %} </s> <s> [INST] x [/INST] <bos> <|user|> &lt;")],
}  # fmt: skip

ORDINARY = frozenset(CHATS) - {"tool call", "markup"}
"""Conversations that every engine has to get right; elsewhere some have limits of their own."""

TURN = "Lightning follows."
"""An answer whose end is looked for: the token that ends a turn."""


def conversations() -> list[dict[str, Any]]:
    """Conversations as `name`, `messages` and `tools`; every oddity is one."""
    found: list[dict[str, Any]] = [
        {"name": name, "messages": messages, "tools": None} for name, messages in CHATS.items()
    ]
    found.append({"name": "tools", "messages": CHATS["tool call"][:1], "tools": [TOOL]})
    for name, text in ODDITIES.items():
        messages = [_user(text), _assistant(text), _user(f"Again: {text}")]
        found.append({"name": f"chat of {name}", "messages": messages, "tools": None})
    return found
