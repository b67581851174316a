"""What an unchanged AWS Lambda function expects, and how it is called: runs in the worker, in the user's own Python.

Standard library only, Python 3.9 or newer. `worker.py` loads this file by its path when `contract = "aws-lambda"`.
https://docs.aws.amazon.com/lambda/latest/dg/python-handler.html
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote_plus, urlencode

_UTC = timezone.utc  # noqa: UP017 - the user's Python may be older than the shorter name
_ROWS = {"insert": "INSERT", "update": "MODIFY", "delete": "REMOVE"}
_POSTGRES = "headrace.postgres."
_OBJECT = "headrace.object."


class Function:
    """The deployed function, as far as events and context speak of it."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.name = setup["handler"]
        self.region = setup["region"]
        self.account = setup["account"]
        self.memory = str(setup["memory"])
        self.timeout = setup["timeout"]

    def arn(self, service: str, resource: str) -> str:
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"


class Identity:
    """There is none: no mobile application calls."""

    cognito_identity_id = None
    cognito_identity_pool_id = None


class LambdaContext:
    """What a function learns about its call.

    https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    function_version = "$LATEST"
    client_context = None
    identity = Identity()

    def __init__(self, function: Function, request: str, remaining: Callable[[], float]) -> None:
        self.aws_request_id = request
        self.function_name = function.name
        self.memory_limit_in_mb = function.memory
        self.invoked_function_arn = function.arn("lambda", f"function:{function.name}")
        self.log_group_name = f"/aws/lambda/{function.name}"
        self.log_stream_name = _STREAM
        self._remaining = remaining

    def get_remaining_time_in_millis(self) -> int:
        """Never negative."""
        return max(0, int(self._remaining() * 1000))

    def log(self, message: Any) -> None:
        sys.stdout.write(str(message))


_STREAM = time.strftime("%Y/%m/%d/[$LATEST]", time.gmtime()) + uuid.uuid4().hex
_request = ""


class _Lines(logging.Formatter):
    """As Lambda writes them; the request's id is in the log line of the daemon, with the event's."""

    def format(self, record: logging.LogRecord) -> str:
        record.aws_request_id = _request
        return super().format(record)


def prepare(_: Mapping[str, Any]) -> None:
    """Before the function is imported: Lambda has a handler on the root logger, so `logger.info` shows."""
    handler = logging.StreamHandler(sys.stdout)
    layout = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    formatter = _Lines(layout, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)


def adapt(call: Callable[..., Any], setup: Mapping[str, Any], partial: Callable[..., Any]) -> Callable[..., Any]:
    """The function as the worker calls it: with an event, or a list of row changes, and the worker's context.

    `partial(failed, first)` is what the worker takes as "these failed, and from `first` on they come again".
    """
    function = Function(setup)

    def invoke(given: Any, context: Any) -> Any:
        global _request  # noqa: PLW0603 - one call at a time, and logging knows no other way
        events = given if isinstance(given, list) else [given]
        _request = _request_id(events)
        answer = call(shape(events, function), LambdaContext(function, _request, context.remaining_seconds))
        if is_row(events[0]):
            return _failures(answer, events, partial)
        return _http_failure(answer) if events[0]["type"] == "headrace.http.request" else None

    return invoke


def _request_id(events: Sequence[Mapping[str, Any]]) -> str:
    """The same for every attempt, as for an asynchronous invocation."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(f"{event['source']} {event['id']}" for event in events)))


def _failures(answer: Any, events: Sequence[Mapping[str, Any]], partial: Callable[..., Any]) -> Any:
    """A stream's `batchItemFailures`: Lambda goes on from the first that failed, and so do we.

    https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
    """
    failures = answer.get("batchItemFailures") if isinstance(answer, dict) else None
    if not failures:
        return None
    places = {sequence(event): index for index, event in enumerate(events)}
    try:
        failed = sorted({places[item["itemIdentifier"]] for item in failures})
    except (KeyError, TypeError) as error:
        raise ValueError(f"batchItemFailures names no record of the batch: {json.dumps(failures)[:200]}") from error
    return partial(dict.fromkeys(failed, "named in batchItemFailures"), failed[0] + 1)


def _http_failure(answer: Any) -> None:
    status = answer.get("statusCode") if isinstance(answer, dict) else None
    if isinstance(status, int) and status >= 500:
        raise RuntimeError(f"the function answered with status {status}: {str(answer.get('body', ''))[:200]}")


# --- shapes


def is_row(event: Mapping[str, Any]) -> bool:
    """Whether it is a change of a row, which is what streams carry."""
    kind = event["type"]
    return bool(kind.startswith(_POSTGRES)) and kind[len(_POSTGRES) :] in _ROWS


def shape(events: Sequence[Mapping[str, Any]], function: Function) -> Any:
    """What the function gets. Several events are row changes, all of them."""
    event = events[0]
    kind = event["type"]
    if is_row(event):
        return {"Records": [row_record(one, function) for one in events]}
    if kind in {_OBJECT + "created", _OBJECT + "deleted"}:
        return {"Records": [object_record(event, function)]}
    if kind == "headrace.cron.tick":
        return scheduled(event, function)
    if kind == "headrace.http.request":
        return http(event, function)
    return bus(event, function)


def object_record(event: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """An S3 notification's record.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
    """
    data = event["data"]
    bucket = data["bucket"]
    deleted = event["type"] == _OBJECT + "deleted"
    name = (data.get("eventName") or "").removeprefix("s3:")
    if not name or name.endswith("*"):  # found by listing
        name = "ObjectRemoved:Delete" if deleted else "ObjectCreated:Put"
    about = {"key": quote_plus(data["key"], safe="/")}
    for ours, theirs in (("size", "size"), ("etag", "eTag"), ("versionId", "versionId"), ("sequencer", "sequencer")):
        if data.get(ours) is not None:
            about[theirs] = data[ours]
    owner = {"principalId": "HEADRACE"}
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": function.region,
        "eventTime": _time(event, "milliseconds"),
        "eventName": name,
        "userIdentity": owner,
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": _hex(event)[:16].upper(), "x-amz-id-2": _hex(event)},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": event["source"],
            "bucket": {"name": bucket, "ownerIdentity": owner, "arn": f"arn:aws:s3:::{bucket}"},
            "object": about,
        },
    }


def row_record(event: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """A record of a DynamoDB stream.

    https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_streams_Record.html
    """
    data = event["data"]
    table = data["table"] if data.get("schema") in {None, "public"} else f"{data['schema']}.{data['table']}"
    moment = _moment(event)
    images = {"Keys": data.get("key"), "NewImage": data.get("after"), "OldImage": data.get("before")}
    return {
        "eventID": _hex(event)[:32],
        "eventName": _ROWS[event["type"][len(_POSTGRES) :]],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": function.region,
        "dynamodb": {
            "ApproximateCreationDateTime": int(moment.timestamp()),
            **{name: _attributes(image) for name, image in images.items() if isinstance(image, dict)},
            "SequenceNumber": sequence(event),
            "SizeBytes": len(json.dumps(data)),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
        "eventSourceARN": function.arn("dynamodb", f"table/{table}/stream/2020-01-01T00:00:00.000"),
    }


def sequence(event: Mapping[str, Any]) -> str:
    """What names a record in `batchItemFailures`."""
    return str(event.get("sequence") or event["id"])


def _attributes(image: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attribute(value) for name, value in image.items()}


def attribute(value: Any) -> dict[str, Any]:
    """A typed attribute: `{"N": "101"}`."""
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, (int, float)):
        return {"N": json.dumps(value)}
    if isinstance(value, list):
        return {"L": [attribute(one) for one in value]}
    if isinstance(value, dict):
        return {"M": _attributes(value)}
    return {"S": str(value)}


def scheduled(event: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """A scheduled event.

    https://docs.aws.amazon.com/lambda/latest/dg/with-eventbridge-scheduler.html
    """
    data = event.get("data") or {}
    rule = function.arn("events", f"rule/{data.get('schedule') or event.get('subject')}")
    return _envelope(event, function, "Scheduled Event", "aws.events", [rule], data.get("payload") or {})


def bus(event: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """An event of a bus, for all that has no shape of its own.

    https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html
    """
    resources = [event["subject"]] if event.get("subject") else []
    return _envelope(event, function, event["type"], event["source"], resources, event.get("data") or {})


def _envelope(
    event: Mapping[str, Any], function: Function, kind: str, source: str, resources: list[str], detail: Any
) -> dict[str, Any]:
    return {
        "version": "0",
        "id": _request_id([event]),
        "detail-type": kind,
        "source": source,
        "account": function.account,
        "time": _time(event, "seconds"),
        "region": function.region,
        "resources": resources,
        "detail": detail,
    }


def http(event: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """An HTTP API's request, payload format 2.0.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
    """
    data = event["data"]
    query, headers = data.get("query") or {}, data.get("headers") or {}
    moment, domain = _moment(event), headers.get("host", "localhost")
    body, encoded = _http_body(data)
    found: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": data["path"],
        "rawQueryString": urlencode(query, doseq=True),
        "headers": headers,
        "requestContext": {
            "accountId": function.account,
            "apiId": "headrace",
            "domainName": domain,
            "domainPrefix": domain.partition(".")[0],
            "http": {
                "method": data["method"],
                "path": data["path"],
                "protocol": "HTTP/1.1",
                "sourceIp": data.get("remote") or "127.0.0.1",
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": event["id"],
            "routeKey": "$default",
            "stage": "$default",
            "time": moment.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(moment.timestamp() * 1000),
        },
        "isBase64Encoded": encoded,
    }
    if query:
        found["queryStringParameters"] = {name: ",".join(values) for name, values in query.items()}
    if body is not None:
        found["body"] = body
    return found


def _http_body(data: Mapping[str, Any]) -> tuple[str | None, bool]:
    if "body_base64" in data:
        return data["body_base64"], True
    body = data.get("body")
    media = (data.get("headers") or {}).get("content-type", "").partition(";")[0].strip()
    if body is None or (isinstance(body, str) and not media.endswith("json")):
        return body, False
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")), False


def _moment(event: Mapping[str, Any]) -> datetime:
    text = event.get("time")
    if not text:
        return datetime.now(_UTC)
    return datetime.fromisoformat(_micro(text.replace("Z", "+00:00"))).astimezone(_UTC)


def _micro(text: str) -> str:
    """Python before 3.11 reads fractions of three or six digits only."""
    head, dot, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return f"{head}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}" if dot else text


def _time(event: Mapping[str, Any], precision: str) -> str:
    return _moment(event).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _hex(event: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{event['source']} {event['id']}".encode("utf-8", "surrogatepass")).hexdigest()
