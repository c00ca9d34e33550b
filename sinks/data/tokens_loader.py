"""litdata's loader of tokens, safe against its own second thread, which fetches and deletes chunks."""

import os
import threading
from typing import Any

import litdata

# One for all loaders of a process: a loader that holds one could not be pickled for workers.
LOCK = threading.RLock()


class TokensLoader(litdata.TokensLoader):  # litdata compares the name with that in index.json
    """Reads, closes and deletes chunks one after another, and maps them in the reading thread alone.

    litdata 0.2.76 does so without a lock: closing a chunk that is being mapped is a KeyError, and reading one that is
    being deleted is a segmentation fault.
    """

    def pre_load_chunk(self, chunk_index: int, chunk_filepath: str) -> None:
        """Map nothing: it is cheap when a row is read, and this is called by the fetching thread."""

    def load_item_from_chunk(
        self, index: int, chunk_index: int, chunk_filepath: str, begin: int, filesize_bytes: int
    ) -> Any:
        while True:
            with LOCK:
                if chunk_filepath in self._chunk_filepaths and os.path.isfile(chunk_filepath):
                    return super().load_item_from_chunk(index, chunk_index, chunk_filepath, begin, filesize_bytes)
            # Without the lock: the chunk may be fetched only once another one is deleted.
            self._wait_until_chunk_ready(chunk_index, chunk_filepath, filesize_bytes)
            self._chunk_filepaths[chunk_filepath] = True

    def delete(self, chunk_index: int, chunk_filepath: str) -> None:
        with LOCK:
            super().delete(chunk_index, chunk_filepath)

    def close(self, chunk_index: int) -> None:
        with LOCK:
            super().close(chunk_index)
