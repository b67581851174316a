"""Events to an HTTP endpoint."""

from headrace.sinks.webhook.settings import WebhookSink

__all__ = ["WebhookSink"]
