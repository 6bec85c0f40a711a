"""The one error that is the user's to fix."""


class UserError(ValueError):
    """A mistake in a flag, a config, a file or a machine set-up.

    Its message is the whole report: one or two lines with the cause, the value
    that was given and the nearest legal one. Commands print it without a
    traceback and exit with 1. Anything else that escapes is a bug and keeps its
    traceback.
    """
