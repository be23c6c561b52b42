"""The one array type of this package; docstrings give shape, unit and, where it matters, dtype."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
