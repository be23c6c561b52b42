"""What a user can put right."""


class UserError(Exception):
    """Bad input, named in one line that says what to do. The command line prints it and exits with code 2."""


class WeightsError(UserError, RuntimeError):
    """Weights that cannot be had, read or fitted; a ``RuntimeError`` because timm's own ones are."""
