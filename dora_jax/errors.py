"""The one exception that the command line shows without a traceback."""


class DoraError(Exception):
    """Bad input, said in the user's words: what, where (file, line, field) and the way out."""
