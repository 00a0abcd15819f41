"""What a person can mend: raised at the boundary, shown as one line, exit code 2."""


class GenfedError(Exception):
    """The input or the world is wrong; the message names the thing, its value and what is allowed."""


class StorageError(GenfedError):
    """A client could not keep what it must keep: the run stops, since going on without would change it."""


class RecordError(GenfedError):
    """Bytes, a file or a value that is not the record it should be."""
