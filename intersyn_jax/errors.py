"""The one exception for mistakes a user can mend."""


class UserError(Exception):
  """A mistake in input, config or files. Its message is one line: what is wrong, where, and the mend.

  The command line prints the message and exits with code 2; any other exception is a bug and keeps its traceback.
  """
