"""Near duplicates by MinHash (Broder 1997), in time linear in the number of rows.

A row has two sketches, one of its prompt and one of its responses; it is nearly another row if both are nearly alike.
Rows that agree in a band of the sketches are compared with the first row of that band only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 64  # of each sketch: the standard error of a similarity of 0.85 is 0.045
_BANDS, _ROWS = (
    32,
    2,
)  # bands of a sketch, and values per band: two rows of similarity 0.85 miss all of them 1 time in 10^8
_SIMILAR = 0.85
_SHINGLE = 3  # words
_CHARACTERS = 5  # of a shingle where words are not separated by spaces
_SEED = 1


def shingles(text: str) -> list[str]:
    """The overlapping word triples of a text; of a script without spaces, its runs of five characters."""
    words = text.split()
    if len(text) > 24 * max(len(words), 1):
        return [text[i : i + _CHARACTERS] for i in range(max(1, len(text) - _CHARACTERS + 1))]
    return [" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))]


def sketch(texts: Sequence[tuple[str, str]]) -> NDArray[np.uint16]:
    """(N, 2, PERMUTATIONS): the sketches of (prompt, responses). 16 of 32 bits are kept: two differ by chance alone
    once in 65,536."""
    from rensa import RMinHash

    known = [text.encode(errors="replace").decode() for row in texts for text in row]  # surrogates have no UTF-8
    sets = [shingles(text) for text in known]
    digests = np.array(RMinHash.digests_from_token_sets(sets, PERMUTATIONS, _SEED), np.uint32)
    return (digests & 0xFFFF).astype(np.uint16).reshape(len(texts), 2, PERMUTATIONS)


def near_duplicates(sketches: NDArray[np.uint16]) -> NDArray[np.int64]:
    """For each row the position of the earliest row found that is nearly the same; its own where there is none."""
    rows = len(sketches)
    first = np.arange(rows)
    for band in range(_BANDS):
        part = np.ascontiguousarray(sketches[:, :, band * _ROWS : (band + 1) * _ROWS]).reshape(rows, -1)
        keys = part.view(np.uint64).ravel()  # two values of the prompt, two of the responses: 64 bits
        _, head, which = np.unique(keys, return_index=True, return_inverse=True)
        candidate = head[which.ravel()]
        again = np.flatnonzero((candidate < np.arange(rows)) & (first == np.arange(rows)))
        for start in range(0, len(again), 100_000):  # bounded memory
            some = again[start : start + 100_000]
            alike = (sketches[some] == sketches[candidate[some]]).mean(axis=2).min(axis=1) >= _SIMILAR
            first[some[alike]] = first[candidate[some[alike]]]
    return first
