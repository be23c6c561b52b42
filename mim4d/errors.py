"""What a user can put right."""


class UserError(Exception):
    """Bad input, named in one line that says what to do. The command line prints it and exits with code 2."""
