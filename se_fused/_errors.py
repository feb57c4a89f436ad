"""The exception for errors in a user's data, files or settings, as opposed to errors in the program."""

__all__ = ["InputError"]


class InputError(ValueError):
    """An error in a user's data, files or settings.

    The message is one line that names the file or setting, what is wrong with it, and the remedy. The command line
    prints it and exits with code 2. It must not contain data that identifies a patient, such as values of a DICOM
    header.
    """
