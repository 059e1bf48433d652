"""Measures of texts and of their lengths, as the report and the summary of a run show them."""

import hashlib
import re

# Chinese characters and full-width marks count one word each, as in the method's rule of words.
WORD = re.compile("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]|[^\\s\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]+")
# Together a third of any English text, and rare in other languages of Latin script.
COMMON_ENGLISH = frozenset("the of and to in is that for with as it on are by this be or from at which".split())

SHINGLE_WORDS = 5
SKETCH_HASHES = 128
NEAR_DUPLICATE = 0.7


def count_words(text):
    return len(WORD.findall(text))


def median(ordered):
    """As the program's own table has it: the upper one of an even number."""
    return ordered[len(ordered) // 2]


def percentile(ordered, share):
    return ordered[int(share * (len(ordered) - 1))]


def distinct_four_grams(text):
    """Share of the text's runs of four words that are distinct; 1 for a text of fewer words."""
    words = WORD.findall(text)
    grams = set(zip(words, words[1:], words[2:], words[3:]))
    return len(grams) / (len(words) - 3) if len(words) > 3 else 1.0


def sketch(text):
    """MinHash with one hash function: the smallest hashes of the text's runs of five words (bottom-k sketch)."""
    words = WORD.findall(text.lower())
    runs = {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    hashes = (hashlib.blake2b(run.encode("utf-8", "replace"), digest_size=8).digest() for run in runs)
    return sorted(hashes)[:SKETCH_HASHES]


def similarity(first, second):
    """Estimate of the Jaccard index of two texts' runs of words, from their sketches as sets: of the smallest hashes
    of both together, the share that both have (Broder 1997). Exact where they have no more than a sketch holds."""
    both, either = first & second, first | second
    if len(both) < NEAR_DUPLICATE * min(SKETCH_HASHES, len(either)):
        return 0.0  # too few in any case: most pairs need no sorting
    smallest = sorted(either)[:SKETCH_HASHES]
    return sum(value in both for value in smallest) / len(smallest)


def near_duplicates(texts):
    """How many of the texts have another among them that is nearly the same (similarity of 0.7 or more)."""
    sketches = [sketch(text) for text in texts]
    as_sets = [set(own) for own in sketches]
    holders = {}
    found = set()
    for i, own in enumerate(sketches):
        # Of two such texts, the sixteen smallest hashes have one in common but for a chance of 0.3 ** 16.
        candidates = set()
        for value in own[:16]:
            candidates.update(holders.setdefault(value, []))
            holders[value].append(i)
        for j in candidates:
            if not (i in found and j in found) and similarity(as_sets[i], as_sets[j]) >= NEAR_DUPLICATE:
                found.update((i, j))
    return len(found)


def language(text):
    """`zh`, `en` or `other`: by script, and among Latin texts by the share of common English words."""
    words = WORD.findall(text.lower())
    if not words:
        return "other"
    if 2 * sum("\u4e00" <= word <= "\u9fff" for word in words) >= len(words):
        return "zh"
    plain = [word.strip(".,;:!?\"'()[]*") for word in words]
    return "en" if sum(word in COMMON_ENGLISH for word in plain) >= 0.1 * len(words) else "other"
