"""Errors of an object store as those of a disk, and without what a log must not hold.

The text of an error may hold a signed URL or the server's whole answer, in which a request and its headers may stand
again. Only the status, the server's code for it and the host are taken from it.
"""

from __future__ import annotations

import errno
import os
import re

from obstore.exceptions import AlreadyExistsError, NotFoundError, PermissionDeniedError, UnauthenticatedError

_STATUS = re.compile(r"status code: ((\d{3})[ A-Za-z-]*)")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_URL = re.compile(r"(https?://)(?:[^/\s]*@)?([^/?\s]*)\S*")
_DETAILS = "\n\nDebug source:"
_TIMEOUT = "kind: Timeout"
_NO_TLS = "source: BadScheme"
_NOT_IMPLEMENTED = 501


def as_os_error(error: Exception, where: str) -> OSError:
    """Give the `OSError` that says what an error of obstore says.

    None of them is damage (`is_damage`) but a missing object: what a network does to a request says nothing of what
    is stored.

    Parameters
    ----------
    error : Exception
    where : str
        The URL of what was asked for.
    """
    status, reason = _status(error), _reason(error)
    if isinstance(error, (NotFoundError, FileNotFoundError)) or status == 404:
        return FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)} ({reason})", where)
    if isinstance(error, AlreadyExistsError):
        return FileExistsError(errno.EEXIST, f"{os.strerror(errno.EEXIST)} ({reason})", where)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError)) or status in (401, 403):
        hint = "check the credentials in the environment, and what they allow"
        return PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)} ({reason}): {hint}", where)
    if _TIMEOUT in str(error):
        return TimeoutError(errno.ETIMEDOUT, f"{os.strerror(errno.ETIMEDOUT)} ({reason})", where)
    return OSError(errno.EREMOTEIO, reason, where)


def may_pass(error: Exception) -> bool:
    """Whether an error may be gone at the next try: no answer, or a server that is in trouble or busy."""
    if isinstance(error, (AlreadyExistsError, NotFoundError, PermissionDeniedError, UnauthenticatedError)):
        return False
    status = _status(error)
    if status is None:
        return _NO_TLS not in str(error)
    return status in (408, 429) or (status >= 500 and status != _NOT_IMPLEMENTED)


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[2]) if found else None


def _reason(error: Exception) -> str:
    text = str(error)
    if _NO_TLS in text:
        return "the endpoint is not https://; set AWS_ALLOW_HTTP=true if that is meant"
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return f"{status[1].strip()}, {code[1]}" if code else status[1].strip()
    return _URL.sub(r"\1\2", text.partition(_DETAILS)[0].partition("\n")[0])
