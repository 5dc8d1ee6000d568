"""Which names the long tests take, and which are left for before a release."""

import pytest


def marked(names, some):
    """The names as parameters: `some` are marked slow, the others every."""
    assert set(some) <= set(names)
    marks = pytest.mark.slow, pytest.mark.every
    return [pytest.param(name, marks=marks[name not in some]) for name in names]
