"""When policies act while a sequence decodes."""

from __future__ import annotations

from thrifty import registry
from thrifty.cache.schedule import NEVER, Schedule


def test_periods_count_from_the_prompts_end_and_from_where_a_sequence_went_back_to() -> None:
    policies = [registry.build("cache", {"technique": name}) for name in ("snapkv", "h2o")]
    period = policies[1].period
    assert not policies[0].watches_decode and policies[1].watches_decode
    schedule = Schedule(policies)
    assert schedule.next == NEVER
    schedule.begin(1000)
    assert schedule.next == 1000 + period
    copy = schedule.copy()
    schedule.shorten(990)
    assert schedule.next == 990 + period and copy.next == 1000 + period
    schedule.shorten(998)
    assert schedule.next == 990 + period, "going back never puts a date off"
