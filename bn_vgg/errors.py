"""The one exception that a command turns into a one-line message."""


class UserError(Exception):
    """Something the user can put right: a wrong path, name, value or file.

    The message is one line that says what happened, where, and what to do next.
    Commands print it as `error: …` and exit with status 2; everything else that
    is raised is a bug and keeps its traceback.
    """


class NotThereError(UserError):
    """A file or folder that was named does not exist."""
