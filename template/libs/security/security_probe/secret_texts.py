"""Recognises secrets in variables and in the history of an image, and never repeats them."""

import math
import re
from collections import Counter
from typing import Final

_NAME: Final = re.compile(
    r"(?i)(?:^|_)(?:secrets?|tokens?|pass(?:wd|word|phrase)?s?|pwd|credentials?|auth|"
    r"api_?keys?|private_?key|access_?key|(?:\w+_)?key|dsn)$|password|passwd|secret|apikey"
)
_NAMES_A_PLACE: Final = re.compile(r"(?i)_(?:file|path|dir|source|url|name|id)$")
_BUILD: Final = re.compile(r"(?i)^(?:pip|uv)_|^(?:https?|ftp|all|no|socks)_proxy$|_proxy$")

_FORMATS: Final = (
    ("a private key", re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")),
    (
        "a wrapping key (32 bytes in base64)",
        re.compile(r"(?<![\w+/])[A-Za-z0-9+/_-]{42}[AEIMQUYcgkosw048](?:=|(?![\w+/=-]))"),
    ),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b")),
    ("a URL with a password", re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/@:]*:[^\s/@]+@")),
    ("a URL with a user", re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/@:]{8,}@")),
    ("a token of GitHub", re.compile(r"\b(?:gh[pousr]_\w{30,}|github_pat_\w{30,})")),
    ("a token of GitLab", re.compile(r"\bglpat-[\w-]{20,}")),
    ("a token of Slack", re.compile(r"\bxox[abeoprs]-[\w-]{10,}")),
    ("a token of an index", re.compile(r"\bpypi-[\w-]{30,}|\bnpm_\w{30,}")),
    ("a JSON web token", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+")),
    (
        "a password among the arguments",
        re.compile(r"(?i)(?:password|passwd|token|secret|api[_-]?key)[=:]\s*[^\s$'\"</]{3,}"),
    ),
    ("an Authorization header", re.compile(r"(?i)authorization:\s*(?:basic|bearer)\s+\S{8,}")),
)
_DIGEST: Final = re.compile(r"(?i)\bsha(?:1|224|256|384|512)[:-][0-9a-f]{40,}")
_CHECKSUM: Final = re.compile(r"(?i)\b\w*(?:sha(?:1|224|256|384|512)|md5|digest|checksum)\w*=\S+")
_WORD: Final = re.compile(r"[A-Za-z0-9+/_=-]{24,}")


def named_like_a_secret(name: str) -> str | None:
    """Tell what a variable seems to be by its name, if anything that an image must not have."""
    if _BUILD.search(name):
        return "a setting of the build or a proxy"
    if _NAME.search(name) and not _NAMES_A_PLACE.search(name):
        return "named like a secret"
    return None


def looks_like_a_secret(text: str, *, if_random: bool = True) -> str | None:
    """Tell what kind of secret is in a text, if any; digests of files are none.

    Args:
        text: To be looked through.
        if_random: Whether what looks random counts, where it has no known form.
    """
    for kind, form in _FORMATS:
        if form.search(text):
            return kind
    if not if_random:
        return None
    public = _CHECKSUM.sub("", _DIGEST.sub("", text))
    if any(_is_random(word) for word in _WORD.findall(public)):
        return "something that looks random"
    return None


def _is_random(word: str) -> bool:
    """Tell whether letters follow no pattern of a language or of a path."""
    if re.fullmatch(r"[0-9a-fA-F]{32,}", word):
        return len(set(word.lower())) > 8
    for part in word.split("/"):  # of a path each is short and made of words
        if len(part) < 24 or not re.search(r"[0-9]", part) or not re.search(r"[A-Za-z]", part):
            continue
        counts = Counter(part).values()
        entropy = -sum(n / len(part) * math.log2(n / len(part)) for n in counts)
        if entropy > 3.9 and len(re.findall(r"[0-9][A-Za-z]|[A-Za-z][0-9]|[a-z][A-Z]", part)) > 4:
            return True
    return False
