"""The built-in scores of one text against its reference: plain functions from two texts to a number.

Published measures come from their own packages; what has no package is a few lines. No knowledge of rows, tasks
or studies enters here.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import regex

# 1,234,567.89 | .5 | 42: a comma belongs to a number only between groups of three digits
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\N{MINUS SIGN}])?(?:[$€£¥]\s?)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(rf"[{_UNSPACED}--[\p{{M}}]]\p{{M}}*|(?:[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]\p{{M}}*)+", regex.V1)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

WITHOUT_WORDS = "sentence_chrf"
"""The metric by row that needs no words, only letters."""


def rouge(kind: str, *, use_stemmer: bool = True, multilingual: bool = False) -> Callable[[str, str], float]:
    """Return the F-measure of ROUGE ``kind`` (rouge1, rouge2, rougeL) by Google's ``rouge-score``, in 0..1.

    Words are stemmed (Porter) unless told otherwise, as in the usual summarisation scripts. The package's own tokenizer
    keeps only the letters a-z and digits; ``multilingual`` takes `words` instead, and stems nothing.
    Source: Lin 2004, https://aclanthology.org/W04-1013.
    """
    scorer = _multilingual_rouge_scorer(kind) if multilingual else _rouge_scorer(kind, use_stemmer)

    def score(prediction: str, reference: str) -> float:
        return float(scorer.score(reference, prediction)[kind].fmeasure)

    return score


def words(text: str) -> list[str]:
    """Return the words of a text in any script, in lower case and without accents' different spellings.

    Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one word a character.

    >>> words("Привет, мир! 你好 नमस्ते")
    ['привет', 'мир', '你', '好', 'नमस्ते']
    """
    found: list[str] = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def is_latin(text: str) -> bool:
    """Whether most letters of a text are a-z, the only ones that ``rouge-score`` keeps; so is a text without letters.

    >>> is_latin("un café"), is_latin("Привет a"), is_latin("42")
    (True, False, True)
    """
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(letter.isascii() for letter in letters) >= len(letters)


def exact_match(prediction: str, reference: str) -> float:
    """Return 1.0 when both texts are equal, white space at the ends and runs of it aside; case counts."""
    return float(prediction.split() == reference.split())


def contains(prediction: str, reference: str) -> float:
    """Return 1.0 when the reference stands somewhere in the prediction; case and runs of white space do not count."""
    return float(_collapsed(reference) in _collapsed(prediction))


def last_number(prediction: str, reference: str) -> float:
    """Return 1.0 when the last number of both texts is the same, as GSM8K answers are judged.

    ``$1,234.50``, ``1234.5`` and ``1,234.5`` are one number; a prediction without a number scores 0.
    Source: Cobbe et al. 2021, https://arxiv.org/abs/2110.14168 (references end in ``#### 42``).
    """
    expected = find_last_number(reference)
    return float(expected is not None and find_last_number(prediction) == expected)


def find_last_number(text: str) -> Decimal | None:
    """Return the last number in ``text``, without currency signs and thousands commas, or None.

    A minus counts where no word, digit or closing bracket stands before it: ``10-5`` ends in 5, ``is -5`` in -5.
    """
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    size = Decimal(last.group(1).replace(",", ""))
    return -size if last.group(0)[0] in "-\N{MINUS SIGN}" else size


def plain_answer(text: str) -> str | None:
    """Return a text without case and runs of white space: what it answers where nothing else is known; None if empty.

    >>> plain_answer("  The  answer\\nis A "), plain_answer(" ")
    ('the answer is a', None)
    """
    return _collapsed(text) or None


def exact_answer(text: str) -> str | None:
    """Return what `exact_match` compares of a text; None if there is nothing."""
    return " ".join(text.split()) or None


def f1_answer(text: str) -> str | None:
    """Return what `f1` compares of a text, in its order; None if there is nothing."""
    return " ".join(_squad_tokens(text)) or None


def f1(prediction: str, reference: str) -> float:
    """Return SQuAD's token F1, in 0..1: lower case, without punctuation and the articles a, an, the.

    Source: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250 (evaluation script).
    """
    predicted, expected = _squad_tokens(prediction), _squad_tokens(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """Return sacrebleu's sentence BLEU (effective order, exponential smoothing), in 0..100."""
    return float(_sacrebleu("BLEU", effective_order=True).sentence_score(prediction, list(references)).score)


def sentence_chrf(prediction: str, references: Sequence[str]) -> float:
    """Return sacrebleu's sentence chrF2, in 0..100."""
    return float(_sacrebleu("CHRF").sentence_score(prediction, list(references)).score)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return sacrebleu's corpus BLEU (13a tokens), in 0..100. Source: Post 2018, https://aclanthology.org/W18-6319."""
    return float(_sacrebleu("BLEU").corpus_score(list(predictions), _streams(references)).score)


def corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return sacrebleu's corpus chrF2, in 0..100. Source: Popović 2015, https://aclanthology.org/W15-3049."""
    return float(_sacrebleu("CHRF").corpus_score(list(predictions), _streams(references)).score)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Turn references by row into sacrebleu's streams; rows with fewer references leave theirs empty."""
    most = max((len(row) for row in references), default=0)
    return [[row[place] if place < len(row) else None for row in references] for place in range(most)]


def _squad_tokens(text: str) -> list[str]:
    without_punctuation = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", without_punctuation).split()


def _collapsed(text: str) -> str:
    return " ".join(text.casefold().split())


@cache
def _rouge_scorer(kind: str, use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk: only who scores with it pays

    return RougeScorer([kind], use_stemmer=use_stemmer)


class _WordTokenizer:
    """What ``rouge-score`` takes as a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text."""
        return words(text)


@cache
def _multilingual_rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_WordTokenizer())


@cache
def _sacrebleu(kind: str, **options: Any) -> Any:
    import sacrebleu.metrics

    return getattr(sacrebleu.metrics, kind)(**options)
