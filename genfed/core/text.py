"""Text that another party wrote, made safe where it is shown: a line, a log, a cell of a CSV file, the name of a file.

Names of sites, classes and architectures, messages of errors, and whatever a file or a message says may hold anything:
characters that move a terminal's cursor, line breaks that forge a line of a log, formulas of a spreadsheet, "../".
"""

import logging
import re
import unicodedata

LINE = 1000
"""Largest number of characters of a text that is shown on one line."""
BLOCK = 20_000
"""Largest number of characters of a text of several lines in a log."""
NAME = 80
"""Largest number of characters of a file's name that is made from a text."""
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories of Unicode: control, format, surrogate, separators of lines
_JOINERS = "\u200c\u200d"  # written between letters in Persian and Indic scripts, and in emoji
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_FORMULA = re.compile(r"""(^|[;|])(?=[\s"']*[=+\-@＝＋－＠])""")  # also after spaces and quotes, which may be dropped
_UNDECODED = "".join(map(chr, range(0xDC80, 0xDD00)))  # bytes of a file's name that are not UTF-8, as Python has them
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows does not allow


def escape_controls(text: str, keep: str = "\n\t") -> str:
    r"""Returns the text with every character escaped that is not shown as itself, but for those in `keep`. Nothing in
    it moves a cursor, changes a color or the direction of writing, or cannot be encoded.

    >>> escape_controls("one\x1b[2K line")
    'one\\x1b[2K line'
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _is_hidden(c) else ascii(c)[1:-1] for c in text)


def one_line(text: object, limit: int = LINE) -> str:
    r"""Returns the text as one line of at most `limit` characters, which shows line breaks as \n; what is cut off is
    replaced by "…".

    >>> one_line("boom\nWARNING forged")
    'boom\\nWARNING forged'
    """
    whole = str(text)
    line = escape_controls(whole[: limit + 1], keep="")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def indent_lines(text: str, limit: int = BLOCK) -> str:
    """Returns a text of several lines for a log in which each entry begins a line: all lines are indented. Of a text
    above `limit` characters the end is kept, where a traceback names its error.
    """
    kept = text if len(text) <= limit else f"…\n{text[-limit:]}"
    return "\n".join(f"    {one_line(line, LINE)}" for line in kept.splitlines())


class LogFormatter(logging.Formatter):
    """Formats an entry of a log: what follows its first line is indented, so that no text in it passes for an entry."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        first, *rest = super().format(record).split("\n", 1)
        return "\n".join([escape_controls(first, keep=""), *map(indent_lines, rest)])


def csv_cell(value: object) -> object:
    r"""Returns a value that no spreadsheet takes for a formula, whichever character it takes for the separator: a text
    that begins like one, also after ";" or "|", gets an apostrophe there, which makes it text. Control characters are
    escaped, tabs and line breaks too; bytes of a file's name that are no text stay. Numbers stay numbers.

    >>> csv_cell("=1+1"), csv_cell("a;=1+1"), csv_cell("a\t=1+1"), csv_cell("-1.5"), csv_cell(2)
    ("'=1+1", "a;'=1+1", 'a\\t=1+1', '-1.5', 2)
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub(r"\1'", escape_controls(value, keep=_UNDECODED))


def file_name(text: str, default: str) -> str:
    """Returns the text as the name of one file or folder that every system allows: at most 80 characters and 200 bytes,
    without separators, control characters and a dot at an end. `default` where nothing is left, or where a system has
    another use for the name.
    """
    name = re.sub(r'[/\\:*?"<>|]', "_", "".join("_" if _is_hidden(c) else c for c in text))
    name = name[:NAME].encode()[:200].decode(errors="ignore").rstrip(". ").lstrip(" ")
    return default if not name or name.startswith(".") or _RESERVED.fullmatch(name) else name


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS
