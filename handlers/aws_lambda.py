"""`contract = "aws-lambda"`: calls an unchanged AWS Lambda function, with the events and the context it knows.

The shapes are made in the worker, by `aws_lambda_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
from pydantic import Field

from headrace.handlers import aws_lambda_shapes as shapes
from headrace.handlers.calls import WorkerSettings
from headrace.handlers.python import PythonHandler
from headrace.protocols import Batch


class _Typed(msgspec.Struct):
    type: str


_types: Final = msgspec.json.Decoder(_Typed).decode_lines


class AwsLambdaHandler(PythonHandler):
    """`function = "app.py:lambda_handler"`, called as AWS Lambda calls it.

    Row changes come as records of a DynamoDB stream, up to `batch.size` in one call; `batchItemFailures` is honoured.
    Everything else comes one by one: S3, scheduled, HTTP API and EventBridge events. What the function returns is
    otherwise ignored, as for an asynchronous invocation; an HTTP answer with a status of 500 or more is a failure.
    `region`, `account` and `memory` (MB) are what events and context tell the function, and nothing else.
    """

    contract: str = "aws-lambda"
    region: str = Field("us-east-1", min_length=1)
    account: str = Field("000000000000", pattern=r"^\d{12}$")
    memory: int = Field(128, ge=1)

    def environment(self) -> dict[str, str]:
        """With the variables that Lambda sets, as far as libraries work with them outside of it."""
        own = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        return {**own, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory), **super().environment()}

    def worker_settings(self, name: str, directory: Path) -> WorkerSettings:
        settings = super().worker_settings(name, directory)
        named = {
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_VERSION": shapes.LambdaContext.function_version,
            "_HANDLER": self.function,
        }
        return replace(
            settings,
            environment={**named, **settings.environment},
            contract=Path(shapes.__file__),
            options={"region": self.region, "account": self.account, "memory": self.memory},
        )

    def together(self) -> Callable[[Batch], bool]:
        return _only_rows


def _only_rows(batch: Batch) -> bool:
    return len(batch) > 1 and all(shapes.is_row({"type": each.type}) for each in _types(batch.data))
