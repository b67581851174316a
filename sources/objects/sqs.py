"""Notifications from an SQS queue: long polling, and a message is deleted only when its events are durable.

Standard queues deliver at least once and in any order: a message is a hint, and never more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from headrace.failpoints import reach
from headrace.protocols import Logger
from headrace.sources.objects.aws_errors import explained
from headrace.sources.objects.hints import Hints
from headrace.sources.objects.records import Hint, hint_of, parse

RECEIVERS: Final = 3  # requests at the same time: each brings at most ten messages
BATCH: Final = 10  # messages of one request: what SQS allows
WAIT: Final = 20  # seconds of a long poll: what SQS allows
OPEN: Final = 500  # messages received and not yet durable


class SqsStream:
    """One queue, of which this source is the only reader."""

    def __init__(self, client: Any, url: str, log: Logger) -> None:
        self._client = client
        self._url = url
        self._log = log
        self._room = asyncio.Semaphore(OPEN // BATCH)
        self._done: asyncio.Queue[list[str]] = asyncio.Queue()

    async def run(self, hints: Hints) -> None:
        await self.check()
        hints.arrived(self)
        async with asyncio.TaskGroup() as group:
            for _ in range(RECEIVERS):
                group.create_task(self._receive(hints), name="receive")
            group.create_task(self._delete(), name="delete")

    async def check(self) -> None:
        """Raises where the queue is not there, or may not be read."""
        with explained(self._url, "sqs:GetQueueAttributes"):
            await self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])

    async def _receive(self, hints: Hints) -> None:
        while True:
            await self._room.acquire()
            with explained(self._url, "sqs:ReceiveMessage"):
                answer = await self._client.receive_message(
                    QueueUrl=self._url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=WAIT
                )
            messages = answer.get("Messages", ())
            if messages:
                self._take(messages, hints)
            else:
                self._room.release()

    def _take(self, messages: Sequence[dict[str, Any]], hints: Hints) -> None:
        found: list[Hint] = []
        receipts: list[str] = []
        for message in messages:
            try:
                found += hints_in(message["Body"])
                receipts.append(message["ReceiptHandle"])
            except ValueError as error:
                # Left to the queue's own redrive policy: deleting what was not understood would lose it.
                self._log.warning(
                    "a message in the queue is no notification", id=message.get("MessageId"), why=str(error)
                )
        hints.put(found, self._deleter(receipts))

    def _deleter(self, receipts: list[str]) -> Callable[[], None]:
        def delete() -> None:
            self._room.release()
            if receipts:
                self._done.put_nowait(receipts)

        return delete

    async def _delete(self) -> None:
        while True:
            receipts = await self._done.get()
            reach("objects.before-delete")
            entries = [{"Id": str(number), "ReceiptHandle": it} for number, it in enumerate(receipts)]
            with explained(self._url, "sqs:DeleteMessage"):
                answer = await self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
            if failed := answer.get("Failed"):
                self._log.info("messages could not be deleted and will come again", count=len(failed))


def hints_in(body: str) -> list[Hint]:
    """The hints of a message, also of one that came through SNS. Raises `ValueError` where it is no notification."""
    text = body
    found = json.loads(body)
    if isinstance(found, dict) and found.get("Type") == "Notification" and isinstance(found.get("Message"), str):
        text = found["Message"]
    records = parse(text)
    if not records and '"s3:TestEvent"' not in text:
        raise ValueError("no notification: it has no records")
    return [hint for record in records if (hint := hint_of(record))]
