"""What an S3 server's refusal means for the operator: each its own message and remedy.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from headrace.errors import Fatal, HeadraceError, Transient

_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "XMinioServerNotInitialized"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403"})
_KEYS = frozenset({"InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "InvalidClientTokenId", "AuthFailure"})
_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
_UNTRUSTED = "set `ca_file` to the authority that signed the server's certificate"
_RENEW = "renew the server's certificate, or correct this machine's clock"
_NAME = "write the host of `endpoint` as the certificate does"
# By OpenSSL's X509_V_ERR_…: not yet valid, expired, of another host name, of another address.
_CERTIFICATE = {9: _RENEW, 10: _RENEW, 62: _NAME, 64: _NAME}


class BucketMissing(Transient):
    """There is no such bucket now."""

    def __init__(self, bucket: str) -> None:
        super().__init__(
            f'there is no bucket "{bucket}"', hint="create it, or correct `bucket`; it is looked for again"
        )


class Denied(Transient):
    """The keys are good, and have no right to do this."""


def refused(code: str, message: str, *, what: str, endpoint: str, bucket: str = "") -> HeadraceError:
    """The error for a code of the server. `what` is the right that the request needed, such as `s3:ListBucket`.

    What can be put right at the server, without changing the settings, is `Transient`: it is tried again.
    """
    if code == "NoSuchBucket":
        return BucketMissing(bucket)
    if code in _DENIED:
        where = f' on bucket "{bucket}"' if bucket else ""
        return Denied(f"{endpoint} denies {what}{where}", hint=f"allow {what} to this key")
    return _wrong_settings(code, message, endpoint) or _cannot(code, message, what, endpoint)


def _wrong_settings(code: str, message: str, endpoint: str) -> HeadraceError | None:
    if code in _KEYS:
        hint = "correct `access_key`, or add the key at the server"
        return Transient(f"{endpoint} does not know the access key ({code})", hint=hint)
    if code == "SignatureDoesNotMatch":
        hint = "correct `secret_key`; a proxy that changes the Host header has the same effect"
        return Transient(f"{endpoint} refuses the signature: the secret key is wrong", hint=hint)
    if code == "RequestTimeTooSkewed":
        hint = "set both clocks by NTP; more than 15 minutes are refused"
        return Transient(f"the clocks of this machine and of {endpoint} differ too much", hint=hint)
    if code in _REGION:
        return Fatal(f"{endpoint} wants another region: {message}", hint="set `region`")
    return None


def _cannot(code: str, message: str, what: str, endpoint: str) -> HeadraceError:
    if code in _BUSY or code.startswith("5"):
        return Transient(f"{endpoint} is busy or starting ({code})")
    if code in {"NotImplemented", "MethodNotAllowed"}:
        return Fatal(f"{endpoint} cannot do this: {what}", hint="see which servers are supported in the guide")
    return Transient(f"{endpoint} answers {code}: {message}", hint=f"it was asked for {what}")


def not_s3(endpoint: str, detail: str) -> Fatal:
    """Something answers, in another language."""
    return Fatal(
        f"{endpoint} is no S3 server: {detail}", hint="set `endpoint` to the S3 API, not to a console or proxy page"
    )


def cannot_listen(endpoint: str) -> Fatal:
    """An S3 server without MinIO's extension."""
    hint = 'only MinIO and RustFS can; use type = "s3", which lists on a schedule or reads a queue'
    return Fatal(f"{endpoint} cannot be listened to", hint=hint)


def unreachable(endpoint: str, error: BaseException) -> Transient:
    """No connection, or one that broke. Says what TLS did not like where that was it."""
    every = [*causes(error)]
    for cause in every:
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_message"):
            hint = _CERTIFICATE.get(cause.verify_code, _UNTRUSTED)
            return Transient(f"the certificate of {endpoint} is not trusted: {cause.verify_message}", hint=hint)
    for cause in every:
        if isinstance(cause, ssl.SSLError) or "SSL" in type(cause).__name__:
            return Transient(f"no TLS with {endpoint}: {_text(cause)}", hint="is it https, and that port?")
    found = next((it for it in every if isinstance(it, OSError) and it.strerror), None)
    why = _text(found or error)
    return Transient(f"{endpoint} cannot be reached: {why}", hint="is it running, and `endpoint` right?")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, also where urllib3, aiohttp or botocore keep it in a field of their own."""
    known: set[int] = set()
    next_: BaseException | None = error
    while next_ is not None and id(next_) not in known:
        known.add(id(next_))
        yield next_
        named = [getattr(next_, name, None) for name in ("reason", "certificate_error", "os_error")]
        kept = [*named, (getattr(next_, "kwargs", None) or {}).get("error"), *next_.args]
        inner = [it for it in kept if isinstance(it, BaseException)]
        next_ = inner[0] if inner else next_.__cause__ or next_.__context__


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else ""
    return text if text and len(text) < 100 else type(error).__name__
