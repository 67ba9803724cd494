"""The exceptions that end in one line."""


class UserError(Exception):
    """Say in one line what is wrong with the input and how to fix it; run_cli exits with code 2."""


class LastStepError(Exception):
    """Say in one line which last step of a finished job failed; run_cli exits with code 3."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's kind and message in one short line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= limit else text[:limit] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
