"""What is wrong with somebody's data, files or settings, as opposed to a mistake in the program."""

__all__ = ["InputError"]


class InputError(ValueError):
    """One line that names the file or setting, what is wrong with it, and the remedy. The command line prints it and
    ends with exit code 2.

    No names of patients: neither a DICOM header's values nor anything else that tells who somebody is.
    """
