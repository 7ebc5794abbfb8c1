"""Copy committed checkpoints to a second storage in the background."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

from gfgw_prod.checkpoint.finding import is_good, step_directories
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.retention import Retention
from gfgw_prod.checkpoint.storage import BLOCK, Storage
from gfgw_prod.process.exit_codes import one_line
from gfgw_prod.process.standard_streams import Warned


class Uploader:
    """Uploads one checkpoint at a time, always the newest: a slow network skips some. On rank 0.

    Args:
        token, retention: of ``target``; the token is its claim's.
        record: called in the thread with step, images, and ``run/uploads`` or ``run/upload_failures``.

    Attributes:
        uploading: name of the checkpoint that is being copied, and must not be removed.
    """

    def __init__(
        self,
        source: Storage,
        target: Storage,
        token: str,
        retention: Retention,
        record: Callable[[int, int, str], None],
        log: Callable[[str], None],
    ):
        self._source, self._target, self._token = source, target, token
        self._retention, self._record, self._log = retention, record, log
        self._wake = threading.Condition()
        self._next: Checkpoint | None = None
        self._finishing = False
        self.uploading: str | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """Upload a checkpoint after the present one, unless a newer one is offered before."""
        with self._wake:
            self._next = checkpoint
            self._wake.notify()

    def finish(self) -> threading.Thread:
        """Return the thread, which ends after it has uploaded the newest checkpoint and released its claim."""
        with self._wake:
            self._finishing = True
            self._wake.notify()
        return self._thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._finishing)
                checkpoint, self._next = self._next, None
                if checkpoint is None:
                    break
                self.uploading = checkpoint.name
            tag = "run/uploads"
            try:
                self._upload(checkpoint)
            except Exception as error:  # clients of object stores raise errors of their own kinds
                tag = "run/upload_failures"
                problem = one_line(error, 300)
                self._log(Warned(f"checkpoint {checkpoint.name} could not be uploaded to {self._target}: {problem}"))
            self.uploading = None
            self._record(checkpoint.step, checkpoint.images, tag)
        # In this thread: a network that does not answer must not block the main thread.
        self._target.release(self._token)

    def _upload(self, checkpoint: Checkpoint) -> None:
        if any(
            step == checkpoint.step and is_good(self._target, name) for step, name in step_directories(self._target)
        ):
            return
        path = self._target.begin(checkpoint.name, self._token)
        for name in checkpoint.manifest["files"]:
            with (
                self._source.create_stream(f"{checkpoint.name}/{name}", "rb") as source,
                self._target.create_stream(f"{path}/{name}", "wb") as target,
            ):
                shutil.copyfileobj(source, target, BLOCK)
        problem = Checkpoint(self._target, path, checkpoint.manifest).problem()
        if problem is not None:
            raise OSError(f"the copy differs: {problem}")
        uploaded = self._target.commit(path, checkpoint.name, encode(checkpoint.manifest), self._token)
        self._retention.verified.add(uploaded)
        self._retention.apply()
