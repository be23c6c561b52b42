"""What a user can put right."""


class UserError(Exception):
    """Bad input, named in one line that says what to do. The command line prints it and exits with code 2."""


class WeightsError(UserError, RuntimeError):
    """Weights that cannot be had, read or fitted; a ``RuntimeError`` because timm's own ones are."""


class BadDataError(UserError):
    """One file or record is missing or broken: the clip that needs it cannot be read, others can."""

    def __init__(self, what: str, problem: str) -> None:
        """Name the file or record in full and say what is wrong with it.

        Args:
            what: The path, or the sensor and the moment whose record is missing.
            problem: Such as ``no such file``.
        """
        super().__init__(what, problem)  # both, so that it comes whole out of a worker's pickle

    def __str__(self) -> str:
        what, problem = self.args
        return f"{what}: {problem}"
