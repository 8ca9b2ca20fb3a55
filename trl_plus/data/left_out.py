"""The note on rows that a converter has left out."""

SHOWN = 3  # rows that a message names


class LeftOut(str):
    """A note that says which rows of a table a converter has left out, together with what it counts.

    Attributes:
        name: the rows as messages name them.
        rows, of: how many were left out, and of how many.
        first: the first of them, position -> reason.
    """

    name: str
    rows: int
    of: int
    first: dict[int, str]

    @classmethod
    def of_rows(cls, text: str, name: str, problems: dict[int, str], of: int) -> "LeftOut":
        note = cls(text)
        note.name, note.rows, note.of = name, len(problems), of
        note.first = dict(list(problems.items())[:SHOWN])
        return note
