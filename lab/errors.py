"""The one exception that is the user's to mend."""


class UserError(Exception):
    """Say in one line what is wrong with the input and how to mend it; the command line exits with code 2."""
