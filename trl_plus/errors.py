"""Errors that a user can fix. Each text names the fix."""

from collections.abc import Sequence


class RecipeError(ValueError):
    """A recipe, an override or a path in it is wrong; each problem is one sentence that names the fix."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n".join([f"{len(self.problems)} problems:", *(f"- {problem}" for problem in self.problems)])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class RunFault(RuntimeError):
    """A run failed for a reason that is neither its recipe's nor a bug; the text says what to do."""


class DataError(ValueError):
    """The data cannot be used as it is; the text says what is wrong and names the fix."""


class DataFound(ValueError):
    """Preflight found errors in the data; the text names them."""


class NoRowLeft(ValueError):
    """Every row was dropped."""
