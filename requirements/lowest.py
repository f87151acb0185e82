"""Prints the lowest version of everything that `pyproject.toml` gives a lowest version, as pins.

`make lock` resolves requirements/constraints-oldest.txt under them, so that a minimum which is not
to be had beside the others, or which the tests do not pass on, is found and raised.
"""

import itertools
import pathlib
import re
import tomllib

PYPROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def main() -> None:
    """Prints one pin a line."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = (project["dependencies"], extras["repair"], extras["demo"], extras["test"])
    for requirement in itertools.chain(*groups):
        lowest = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if lowest:
            print(f"{lowest[1]}=={lowest[2]}")


if __name__ == "__main__":
    main()
