"""What every test shares."""

from collections.abc import Sequence

import pytest
from hypothesis import settings

# No deadline: how fast an example runs on a busy machine is no property of the code.
settings.register_profile("headrace", deadline=None, print_blob=True)
settings.load_profile("headrace")


def pytest_report_collectionfinish(items: Sequence[pytest.Item]) -> list[str]:
    """Which servers the tests that were found use; where they use none, none is looked for."""
    if not any(item.get_closest_marker("postgres") for item in items):
        return []
    from tests.fixtures.postgres import described

    return [described()]
