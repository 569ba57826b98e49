"""Two analysts at work for two hours: memory and open files of page and worker stay flat (`tests/bench/soak.py`)."""

import pytest


@pytest.mark.long
@pytest.mark.browser
def test_two_analysts_for_two_hours() -> None:
    from tests.bench import soak

    rows, more = soak.measure(soak.MINUTES)
    assert [row for row in rows if row["passed"] is False] == [], more["failures"]
