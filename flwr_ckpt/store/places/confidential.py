"""What is told by its name to be a secret. Such text is shown to nobody, and of a configuration it is not stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_KEY = re.compile(
    r"(^|[-_.])(password|passwd|passphrase|secret|token|credentials?|(api|access|private|auth|secret)[-_.]?key)s?$",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@|[?#]\S*")


def is_confidential(name: object) -> bool:
    """Whether text of this name is a secret: ``api-key``, ``hf_token``, ``db.password``."""
    return isinstance(name, str) and _KEY.search(name) is not None


def without_secrets(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a configuration the text whose name calls it a secret, and of URLs what may be one."""
    return {
        key: _IN_URL.sub("", value) if isinstance(value, str) and "://" in value else value
        for key, value in configuration.items()
        if not (isinstance(value, (str, bytes)) and is_confidential(key))
    }
