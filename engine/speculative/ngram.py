"""What followed the last time: n-grams of one sequence (prompt lookup decoding, Saxena 2023)."""

from __future__ import annotations


class NgramIndex:
    """Where each n-gram of a growing sequence last occurred. shortest, longest: lengths looked for, in tokens.

    Adding a token costs longest - shortest + 1 dictionary entries, a lookup at most as many reads, however long the
    sequence is.
    """

    __slots__ = ("_follows", "_longest", "_shortest", "_tokens")

    def __init__(self, shortest: int, longest: int) -> None:
        self._shortest = shortest
        self._longest = longest
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: list[int]) -> None:
        """Append tokens; the n-grams before each are now known to be followed by it."""
        known = self._tokens
        for token in tokens:
            end = len(known)
            for length in range(self._shortest, min(self._longest, end) + 1):
                self._follows[tuple(known[end - length :])] = end
            known.append(token)

    def continuation(self, count: int) -> list[int]:
        """`count` tokens that followed the longest n-gram that ends the sequence when it last occurred before, or
        none. A copy that runs into the end goes on with what it has copied, so a repeated pattern is continued."""
        known = self._tokens
        for length in range(self._longest, self._shortest - 1, -1):
            start = self._follows.get(tuple(known[-length:]))
            if start is not None:
                copied: list[int] = []
                for position in range(start, start + count):
                    copied.append(known[position] if position < len(known) else copied[position - len(known)])
                return copied
        return []
