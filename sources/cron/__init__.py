"""The clock: every nominal tick of a schedule, once."""

from headrace.sources.cron.settings import CronSource

__all__ = ["CronSource"]
