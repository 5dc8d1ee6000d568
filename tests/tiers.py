"""Which names the default run takes, which the long tests, and which are left for a release."""

import pytest


def marked(names, quick=(), slow=()):
    """The names as parameters: `quick` ones unmarked, `slow` ones marked slow, the others every."""
    names = list(names)
    assert {*quick, *slow} <= {*names}

    def marks(name):
        return () if name in quick else pytest.mark.slow if name in slow else pytest.mark.every

    return [pytest.param(name, marks=marks(name)) for name in names]
