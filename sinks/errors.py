"""The one error a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user, in one line: the value, the limit, the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
