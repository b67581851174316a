"""botocore's errors as ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from headrace.errors import Fatal, Transient
from headrace.sources.objects.errors import not_s3, refused, unreachable

QUEUE_MISSING = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})


class Hidden(Exception):
    """A refusal that is an answer."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def explained(endpoint: str, what: str, bucket: str = "", hides: Collection[str] = ()) -> Iterator[None]:
    """Raises `Transient` or `Fatal` for every error of the client; `Hidden` for codes that are an answer."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        if code in hides or status in hides:
            raise Hidden(status) from None
        if code in QUEUE_MISSING:
            raise Transient("there is no such queue", hint="create it, or correct `queue`") from error
        if code in {"301", "400"} and what != "":  # HEAD has no body that would say more
            raise Fatal(f"{endpoint} refuses the request ({code})", hint="is `region` the bucket's?") from error
        raise refused(code, message, what=what, endpoint=endpoint, bucket=bucket) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        hint = "set `access_key` and `secret_key`, or AWS's own variables, profile or instance role"
        raise Transient("no AWS credentials were found", hint=hint) from error
    except ResponseParserError as error:
        raise not_s3(endpoint, "its answer is no XML") from error
    except ParamValidationError as error:
        raise Fatal(f"{endpoint}: {' '.join(str(error).split())}", hint="correct `bucket`") from error
    except (BotoConnectionError, HTTPClientError, OSError) as error:
        raise unreachable(endpoint, error) from error
    except BotoCoreError as error:
        raise Transient(f"{endpoint}: {error}") from error
