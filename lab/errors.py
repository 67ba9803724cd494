"""The one exception that is the user's to fix."""


class UserError(Exception):
    """Say in one line what is wrong with the input and how to fix it; run_cli exits with code 2."""
