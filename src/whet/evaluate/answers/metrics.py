"""How well a generated answer matches the expected one: 0 to 1, where 1 is a match.

Sources: exact match and F1 of questions are those of SQuAD (arXiv 1606.05250, Section 6.1), edit
similarity of lines is that of CrossCodeEval (arXiv 2310.11248, Section 3).
"""

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def same_line(answer: str, expected: str) -> float:
    """Whether two lines are equal, ignoring white space at both ends.

    >>> same_line("    return x", "return x")
    1.0
    """
    return float(answer.strip() == expected.strip())


def edit_similarity(answer: str, expected: str) -> float:
    """1 − edit distance / length of the longer line, ignoring white space at both ends.

    Insertions, deletions and substitutions of a character cost 1. Two empty lines give 1. Takes
    time for the product of the lengths.

    >>> edit_similarity("return x", "return xs")
    0.8888888888888888
    """
    one, other = answer.strip(), expected.strip()
    before = list(range(len(other) + 1))  # distances of the start of `one` to those of `other`
    for row, character in enumerate(one, start=1):
        here = [row]
        for column, wanted in enumerate(other, start=1):
            swapped = before[column - 1] + (character != wanted)
            here.append(min(swapped, before[column] + 1, here[-1] + 1))
        before = here
    return 1 - before[-1] / max(len(one), len(other), 1)


def normalized(text: str) -> str:
    """The words of an answer in lower case, without punctuation and without a, an and the.

    >>> normalized("The  Answer, 42!")
    'answer 42'
    """
    words = ARTICLES.sub(" ", text.lower().translate(PUNCTUATION))
    return " ".join(words.split())


def same_words(answer: str, expected: str) -> float:
    """Whether two answers are equal once they are normalized: SQuAD's exact match.

    >>> same_words("The answer.", "answer")
    1.0
    """
    return float(normalized(answer) == normalized(expected))


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer: SQuAD's F1.

    Words count as often as they occur in both. If one of the two has no words, this is 1 if the
    other has none either, otherwise 0.

    >>> f1("the text without spaces", "text without margins")
    0.6666666666666666
    """
    one, other = normalized(answer).split(), normalized(expected).split()
    if not (one and other):
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))
