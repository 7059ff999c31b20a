"""The way to object storage: its library is an extra, and is imported when a URL is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .object_files import ObjectFiles


def open_url(url: str) -> ObjectFiles:
    """Open a folder of a bucket, ``scheme://bucket/folder``; nothing is looked at.

    Raises
    ------
    ImportError
        If object storage is not installed.
    OSError
        If the environment lacks something, such as the name of an Azure account.
    """
    try:
        from .object_files import open_folder
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise ImportError(f'{url}: object storage needs obstore: pip install "flwr-ckpt[cloud]"') from error
    return open_folder(url)
