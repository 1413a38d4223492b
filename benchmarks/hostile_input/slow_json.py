"""JSON, read a token at a time, by the words of RFC 8259 and of our own bounds alone.

It shares nothing with the server, which reads with Python's own parser and checks afterwards.
"""

import re
from typing import Any

LARGEST_INTEGER = 2**63 - 1
LONGEST_TEXT = 1 << 16
DEEPEST = 32
MOST_LISTS, MOST_QUOTES = 100_000, 20_000
SPACE = re.compile(r"[ \t\n\r]*")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
WORDS = {"true": True, "false": False, "null": None}


class NotJson(ValueError):
    """It is none, or one that is beyond a bound."""


def read_json(content: bytes) -> Any:
    """The value of a text.

    Raises:
        NotJson: there is none.
    """
    if content.count(b"[") + content.count(b"{") > MOST_LISTS:
        raise NotJson("too many lists")
    if content.count(b'"') > MOST_QUOTES:
        raise NotJson("too many texts")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJson("no UTF-8") from None
    reader = _Reader(text)
    value = reader.value(0)
    reader.skip()
    if reader.at != len(text):
        raise NotJson(f"more behind it at {reader.at}")
    return value


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def skip(self) -> None:
        found = SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise NotJson("too deep")
        self.skip()
        first = self.text[self.at : self.at + 1]
        if first == "{":
            return self._members(depth)
        if first == "[":
            return self._items(depth)
        if first == '"':
            return self._string()
        for word, meant in WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return meant
        return self._number()

    def _members(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._take("{")
        self.skip()
        while self.text[self.at : self.at + 1] != "}":
            if found:
                self._take(",")
                self.skip()
            key = self._string()
            if key in found:
                raise NotJson(f"{key!r} twice")
            self.skip()
            self._take(":")
            found[key] = self.value(depth + 1)
            self.skip()
        self._take("}")
        return found

    def _items(self, depth: int) -> list[Any]:
        found: list[Any] = []
        self._take("[")
        self.skip()
        while self.text[self.at : self.at + 1] != "]":
            if found:
                self._take(",")
            found.append(self.value(depth + 1))
            self.skip()
        self._take("]")
        return found

    def _string(self) -> str:
        self._take('"')
        pieces: list[str] = []
        while True:
            plain = PLAIN.match(self.text, self.at)
            assert plain is not None
            pieces.append(plain.group())
            self.at = plain.end()
            if self.text[self.at : self.at + 1] == "\\":
                pieces.append(self._escaped())
            else:
                self._take('"')
                break
        whole = "".join(pieces).encode("utf-16", "surrogatepass")
        try:
            text = whole.decode("utf-16")
        except UnicodeDecodeError:
            raise NotJson("half a character") from None
        if len(text) > LONGEST_TEXT:
            raise NotJson("too long a text")
        return text

    def _escaped(self) -> str:
        letter = self.text[self.at + 1 : self.at + 2]
        self.at += 2
        if letter in ESCAPES:
            return ESCAPES[letter]
        digits = self.text[self.at : self.at + 4]
        if letter != "u" or not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
            raise NotJson(f"no escape: {letter!r}")
        self.at += 4
        return chr(int(digits, 16))

    def _number(self) -> int | float:
        found = NUMBER.match(self.text, self.at)
        if found is None:
            raise NotJson(f"no value at {self.at}")
        self.at = found.end()
        if found.group(1) is None and found.group(2) is None:
            if len(found.group()) > 20 or abs(int(found.group())) > LARGEST_INTEGER:
                raise NotJson("too large an integer")
            return int(found.group())
        number = float(found.group())
        if number in (float("inf"), float("-inf")):
            raise NotJson("not finite")
        return number

    def _take(self, letter: str) -> None:
        if self.text[self.at : self.at + 1] != letter:
            raise NotJson(f"no {letter!r} at {self.at}")
        self.at += 1
