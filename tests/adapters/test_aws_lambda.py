"""Functions written for AWS Lambda, as its documentation writes them, called unchanged."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import Fatal, Permanent
from headrace.event import Event
from headrace.handlers.aws_lambda import AwsLambdaHandler
from headrace.handlers.aws_lambda_shapes import attribute
from headrace.plugins import Plugins
from headrace.protocols import Verdict
from tests.adapters.handlers_fixture.kit import Log, batch, lines, opened

FUNCTIONS = Path(__file__).parent / "lambda_fixture"
TIME = "2026-01-02T03:04:05.678901Z"


def handler(function: str, **options: Any) -> AwsLambdaHandler:
    known = {"contract": "aws-lambda", "function": function, "concurrency": 1, "region": "eu-west-3"}
    return AwsLambdaHandler.model_validate(known | options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FUNCTIONS, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__")))


def deliver(settings: AwsLambdaHandler, folder: Path, *events: Event, log: Log | None = None) -> Verdict:
    async def run() -> Verdict:
        async with opened(settings, folder, log or Log()) as sink:
            return await sink.deliver(batch(*events))

    return asyncio.run(run())


def calls(file: Path) -> list[Any]:
    return [json.loads(line) for line in lines(file)]


def made(type_: str, data: Any, number: int = 1, **more: Any) -> Event:
    known: dict[str, Any] = {"id": f"7/{number}", "source": "headrace:s", "subject": "sub/ject", "time": TIME}
    return Event(**{**known, "sequence": f"{number:020d}", **more}, type=f"headrace.{type_}", data=data)


def thing(key: str, type_: str = "created", **more: Any) -> Event:
    data = {"bucket": "photos", "key": key, "size": 3, "etag": "e1", "sequencer": "0A", "recovered": False}
    return made(f"object.{type_}", data | {"eventName": "s3:ObjectCreated:Put"} | more)


def row(number: int, op: str = "insert", **more: Any) -> Event:
    about = {"op": op, "schema": "public", "table": "orders", "key": {"id": number}, "tx": {"id": 1}}
    after = {"id": number, "name": f"n{number}", "price": "1.50", "paid": True, "note": None, "tags": [1, "a"]}
    return made(f"postgres.{op}", about | {"after": after} | more, number)


def test_it_is_installed_under_its_name() -> None:
    assert Plugins().find("headrace.contracts", "aws-lambda") is AwsLambdaHandler


def test_s3(folder: Path) -> None:
    log = Log()
    keys = ["in/a b+c.jpg", "ü%/x&y=z.png", "plain"]
    events = [thing(key, versionId="v1") for key in keys]
    assert deliver(handler("s3_thumbnail.py:lambda_handler"), folder, *events, log=log) == Verdict()
    found = calls(folder / "photos.calls")
    assert [call["key"] for call in found] == keys, "the handler's unquote_plus gives the key back"
    [record] = found[0]["event"]["Records"]
    assert record["s3"]["object"] == {
        "key": "in/a+b%2Bc.jpg",
        "size": 3,
        "eTag": "e1",
        "versionId": "v1",
        "sequencer": "0A",
    }
    assert record["s3"]["bucket"]["arn"] == "arn:aws:s3:::photos"
    assert (record["eventName"], record["eventSource"], record["awsRegion"]) == (
        "ObjectCreated:Put",
        "aws:s3",
        "eu-west-3",
    )
    assert record["eventTime"] == "2026-01-02T03:04:05.678Z"
    printed = [line for _, line in log.output("info")]
    assert any("CONTENT TYPE: plain" in line for line in printed), "Lambda's root logger shows information"
    assert "Remaining: True" in printed


def test_s3_names_of_what_only_a_listing_showed(folder: Path) -> None:
    deliver(
        handler("s3_thumbnail.py:lambda_handler"),
        folder,
        thing("a", eventName="s3:ObjectCreated:*"),
        made("object.deleted", {"bucket": "photos", "key": "a", "eventName": "s3:ObjectRemoved:*", "recovered": True}),
    )
    records = [call["event"]["Records"][0] for call in calls(folder / "photos.calls")]
    assert [record["eventName"] for record in records] == ["ObjectCreated:Put", "ObjectRemoved:Delete"]
    assert records[1]["s3"]["object"] == {"key": "a"}


def test_rows_are_records_of_a_stream_in_one_call(folder: Path) -> None:
    before = {"id": 2, "name": "old"}
    events = [row(1), row(2, "update", before=before), row(3, "delete", after=None, before={"id": 3})]
    assert deliver(handler("dynamodb_stream.py:handler"), folder, *events) == Verdict()
    records = calls(folder / "rows.calls")
    assert [record["eventName"] for record in records] == ["INSERT", "MODIFY", "REMOVE"]
    assert records[0]["dynamodb"]["Keys"] == {"id": {"N": "1"}}
    assert records[0]["dynamodb"]["NewImage"] == {
        "id": {"N": "1"},
        "name": {"S": "n1"},
        "price": {"S": "1.50"},
        "paid": {"BOOL": True},
        "note": {"NULL": True},
        "tags": {"L": [{"N": "1"}, {"S": "a"}]},
    }
    assert records[1]["dynamodb"]["OldImage"] == {"id": {"N": "2"}, "name": {"S": "old"}}
    assert "NewImage" not in records[2]["dynamodb"]
    assert records[0]["eventSourceARN"].split("/")[1] == "orders"
    assert len({record["eventID"] for record in records}) == 3


def test_batch_failures_name_the_culprit_and_the_rest_comes_again(folder: Path) -> None:
    poison = row(3, after={"name": "poison"})
    verdict = deliver(handler("dynamodb_stream.py:handler"), folder, row(1), row(2), poison, row(4), row(5))
    assert verdict.failed == {102: "named in batchItemFailures"}
    assert verdict.skipped == [103, 104]
    assert len(calls(folder / "rows.calls")) == 2
    assert deliver(handler("dynamodb_stream.py:handler"), folder, poison).failed == {100: "named in batchItemFailures"}


@pytest.mark.parametrize(
    ("answer", "failed", "skipped"),
    [
        (None, [], []),
        ({}, [], []),
        ({"batchItemFailures": []}, [], []),
        ({"batchItemFailures": None}, [], []),
        ("done", [], []),
        ({"batchItemFailures": [{"itemIdentifier": f"{3:020d}"}, {"itemIdentifier": f"{1:020d}"}]}, [100, 102], [101]),
        ({"batchItemFailures": [{"itemIdentifier": f"{3:020d}"}]}, [102], []),
    ],
)
def test_what_a_stream_function_may_answer(folder: Path, answer: Any, failed: list[int], skipped: list[int]) -> None:
    (folder / "answer.json").write_text(json.dumps(answer))
    verdict = deliver(handler("dynamodb_stream.py:answers"), folder, row(1), row(2), row(3))
    assert (list(verdict.failed), list(verdict.skipped)) == (failed, skipped)


@pytest.mark.parametrize(
    "items", [[{"itemIdentifier": None}], [{"itemIdentifier": "9"}], [{"wrong": "1"}], ["1"], [{"itemIdentifier": []}]]
)
def test_answers_that_name_nothing_fail_the_batch(folder: Path, items: Any) -> None:
    (folder / "answer.json").write_text(json.dumps({"batchItemFailures": items}))
    with pytest.raises(Permanent, match="names no record of the batch"):
        deliver(handler("dynamodb_stream.py:answers"), folder, row(1), row(2))


def test_a_stream_function_that_raises_fails_the_batch(folder: Path) -> None:
    with pytest.raises(Permanent, match="RuntimeError: all of them"):
        deliver(handler("dynamodb_stream.py:raises"), folder, row(1), row(2))
    assert deliver(handler("dynamodb_stream.py:log_events"), folder, row(1), row(2)) == Verdict()


def test_rows_among_others_are_called_one_by_one(folder: Path) -> None:
    poison = row(2, after={"name": "poison"})
    verdict = deliver(handler("dynamodb_stream.py:handler"), folder, row(1), poison, made("x.y", {}), row(4))
    assert verdict.failed[101] == "named in batchItemFailures"
    assert list(verdict.failed) == [101, 102], "an event of a bus has no Records"
    assert len(calls(folder / "rows.calls")) == 2


def test_scheduled_and_bus_events_and_context(folder: Path) -> None:
    tick = made("cron.tick", {"schedule": "nightly", "nominal": TIME, "skipped": 0, "payload": None})
    file = made("filesystem.created", {"root": "/in", "path": "a"})
    assert deliver(handler("others.py:lambda_handler", memory=256), folder, tick, file) == Verdict()
    scheduled, bus = calls(folder / "others.calls")
    assert scheduled["event"] == {
        "version": "0",
        "id": scheduled["request"],
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "000000000000",
        "time": "2026-01-02T03:04:05Z",
        "region": "eu-west-3",
        "resources": ["arn:aws:events:eu-west-3:000000000000:rule/nightly"],
        "detail": {},
    }
    assert bus["event"]["detail-type"] == "headrace.filesystem.created"
    assert bus["event"]["source"] == "headrace:s"
    assert bus["event"]["detail"] == {"root": "/in", "path": "a"}
    assert bus["event"]["resources"] == ["sub/ject"]
    assert (bus["memory"], bus["name"], bus["version"]) == ("256", "thumbs", "$LATEST")
    assert bus["arn"] == "arn:aws:lambda:eu-west-3:000000000000:function:thumbs"
    assert bus["group"] == "/aws/lambda/thumbs"
    assert 0 < bus["remaining"] <= 30_000
    assert (bus["region"], bus["env_name"], bus["client"], bus["identity"]) == ("eu-west-3", "thumbs", None, None)


def request(body: Any, **more: Any) -> Event:
    headers = {"content-type": "application/json", "host": "shop.example:8080", "user-agent": "curl/8"}
    data = {"method": "POST", "path": "/hooks/a", "query": {"a": ["1", "2"], "b": ["x y"]}, "headers": headers}
    return made("http.request", data | {"body": body} | more)


def test_http(folder: Path) -> None:
    verdict = deliver(handler("others.py:http_handler"), folder, request({"name": "é"}), request({"fail": True}))
    assert list(verdict.failed) == [101]
    assert "answered with status 500: Hello POST" in verdict.failed[101]
    event = calls(folder / "others.calls")[0]["event"]
    assert (event["version"], event["routeKey"], event["rawPath"]) == ("2.0", "$default", "/hooks/a")
    assert event["rawQueryString"] == "a=1&a=2&b=x+y"
    assert event["queryStringParameters"] == {"a": "1,2", "b": "x y"}
    assert (event["body"], event["isBase64Encoded"]) == ('{"name":"é"}', False)
    assert event["requestContext"]["http"]["userAgent"] == "curl/8"
    assert event["requestContext"]["domainPrefix"] == "shop"
    assert event["requestContext"]["time"] == "02/Jan/2026:03:04:05 +0000"
    assert event["requestContext"]["timeEpoch"] == 1767323045678


def test_http_bodies(folder: Path) -> None:
    text = {"headers": {"content-type": "text/plain"}, "body": "a"}
    binary = {"headers": {}, "body_base64": "/w=="}
    events = [made("http.request", {"method": "GET", "path": "/", "query": {}} | data) for data in (text, binary)]
    deliver(handler("others.py:lambda_handler"), folder, *events, request(None), request("a"))
    bodies = [(call["event"].get("body"), call["event"]["isBase64Encoded"]) for call in calls(folder / "others.calls")]
    assert bodies == [("a", False), ("/w==", True), (None, False), ('"a"', False)]


def test_requests_keep_their_id_over_attempts(folder: Path) -> None:
    for _ in range(2):
        deliver(handler("others.py:lambda_handler"), folder, request({}))
    first, second = calls(folder / "others.calls")
    assert first["request"] == second["request"]


def test_async_functions_are_refused(folder: Path) -> None:
    with pytest.raises(Fatal, match="an async function cannot be called by this contract"):
        deliver(handler("others.py:no_lambda"), folder, request({}))


def test_a_function_that_is_not_there(folder: Path) -> None:
    with pytest.raises(Fatal, match="it has lambda_handler, http_handler, no_lambda"):
        deliver(handler("others.py:nothing"), folder, request({}))


def test_typed_attributes() -> None:
    assert attribute({"a": [1, 1.5, True, None, ""]}) == {
        "M": {"a": {"L": [{"N": "1"}, {"N": "1.5"}, {"BOOL": True}, {"NULL": True}, {"S": ""}]}}
    }
