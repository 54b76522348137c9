"""Text cleaning that belongs to a model: pure functions, chosen by `config.preprocess`, the same in training and use.

    clean_text("So <br /> GOOD @you http://x.y", mode="tweet")   # 'So GOOD @user http'

    mode    what it does
    none    nothing
    html    character references decoded, HTML tags out, white space runs to one space
    tweet   html, then every @name becomes @user and every link becomes http (the convention of tweet encoders)
    paper   the cleaning of the RoBERTa-BiLSTM paper (arXiv 2406.00367, Algorithm 1, steps 3-14): html, lower case,
            links and @names out, '#' out (the word stays), everything but the letters a-z and spaces out, the words
            a, an, the out. Its last step, lemmatisation, needs WordNet's lists: pass `lemmatize=wordnet_lemmatizer()`.

Training, `hybridzoo predict`, `hybridzoo eval` and `TextClassifier` apply the mode by themselves. transformers'
pipeline does not know it: either clean the texts first with `clean_text(text, model.config.preprocess)`, or build the
pipeline with `hybridzoo.models.roberta_bilstm.pipeline.text_pipeline`, which does. With mode `none` nothing needs to be
done.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hybridzoo.errors import ConfigError, InputError, unknown

MODES = ("none", "html", "tweet", "paper")
STOP_WORDS = frozenset({"a", "an", "the"})

# A tag begins with a letter or '/': "a < b and c > d" and "<3" are no tags.
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)
_SPACE = re.compile(r"\s+")
_LINK = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_USER = re.compile(r"(?<![\w@])@\w+")
_AT_WORD = re.compile(r"@\S+")
_NOT_LETTER = re.compile(r"[^a-z\s]")


def clean_text(text: str, mode: str = "none", *, lemmatize: Callable[[str], str] | None = None) -> str:
    """The text as a model of this mode wants it. Cleaning a clean text changes nothing.

    Args:
        text: any string.
        mode: one of `MODES`.
        lemmatize: word -> base form, for mode `paper` only; left out, words stay as they are.

    Returns:
        The cleaned text; may be empty (mode `paper` keeps nothing of an emoji).

    Raises:
        ConfigError: an unknown mode, or a lemmatiser for another mode than `paper`.
        InputError: not a string.
    """
    if mode not in MODES:
        raise ConfigError(unknown("preprocess", str(mode), MODES))
    if lemmatize is not None and mode != "paper":
        raise ConfigError(f"lemmatize belongs to preprocess='paper', not {mode!r}; leave it out")
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {type(text).__name__}")
    if mode == "none":
        return text
    text = strip_html(text)
    if mode == "tweet":
        return _USER.sub("@user", _LINK.sub("http", text))
    if mode == "paper":
        return _paper(text, lemmatize)
    return text


def cleaner(mode: str) -> Callable[[str], str]:
    """`clean_text` with the mode fixed; an unknown mode raises at once, not at the first text."""
    clean_text("", mode)
    return partial(clean_text, mode=mode)


def strip_html(text: str) -> str:
    """Character references decoded, tags replaced by a space, white space runs by one."""
    before = None
    while before != text:  # "&amp;lt;br&amp;gt;" was escaped twice; the loop makes a second call change nothing
        before = text
        text = _SPACE.sub(" ", _TAG.sub(" ", html.unescape(text))).strip()
    return text


def _paper(text: str, lemmatize: Callable[[str], str] | None) -> str:
    text = _AT_WORD.sub(" ", _LINK.sub(" ", text.lower()))
    words = _NOT_LETTER.sub("", text).split()
    words = [word for word in words if word not in STOP_WORDS]
    if lemmatize is not None:
        words = [lemmatize(word) for word in words]
    return " ".join(words)


# WordNet's rules of detachment for nouns (man page morphy(7WN)): ending -> its replacement.
_NOUN_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


def wordnet_lemmatizer(folder: str | Path = "/usr/share/wordnet") -> Callable[[str], str]:
    """A noun lemmatiser by WordNet's own lists (the paper names WordNet, not the part of speech; nouns are the usual
    default).

    A word in the exception list gives its base form there; else the shortest form that a rule of detachment yields and
    the noun index knows; else the word itself.

    Args:
        folder: WordNet's database files `noun.exc` and `index.noun` (Debian: `apt-get install wordnet-base`).

    Returns:
        word -> base form.

    Raises:
        ConfigError: the files are not there.
    """
    folder = Path(folder)
    for name in ("noun.exc", "index.noun"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"no WordNet file {folder / name}; `apt-get install wordnet-base` puts it at "
                "/usr/share/wordnet, or give the folder that holds it"
            )
    lines = (folder / "noun.exc").read_text(encoding="utf-8").splitlines()
    irregular = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    index = (folder / "index.noun").read_text(encoding="utf-8").splitlines()
    nouns = {line.split(" ", 1)[0] for line in index if line and not line.startswith(" ")}  # the licence is indented

    def lemmatize(word: str) -> str:
        if word in irregular:
            return irregular[word]
        candidates = [word] + [
            word[: len(word) - len(end)] + new
            for end, new in _NOUN_ENDINGS
            if word.endswith(end) and len(word) > len(end)
        ]
        known = [candidate for candidate in candidates if candidate in nouns]
        return min(known, key=len) if known else word

    return lemmatize
