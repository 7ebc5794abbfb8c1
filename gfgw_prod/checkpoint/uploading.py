"""Copy committed checkpoints to a second storage in the background."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator

from gfgw_prod.checkpoint.finding import open_checkpoint, step_directories
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.retention import Retention
from gfgw_prod.checkpoint.storage import BLOCK, Storage
from gfgw_prod.process.exit_codes import one_line

Metrics = tuple[int, int, dict[str, float]]  # step, images, values by tag


class Uploader:
    """Uploads one checkpoint at a time, always the newest: a slow network skips some. On rank 0.

    Args:
        token: of the claim on ``target``.
        retention: of ``target``.

    Attributes:
        uploading: name of the checkpoint that is being copied, and must not be removed.
    """

    def __init__(self, source: Storage, target: Storage, token: str, retention: Retention, log: Callable[[str], None]):
        self._source, self._target, self._token = source, target, token
        self._retention, self._log = retention, log
        self._wake = threading.Condition()
        self._next: Checkpoint | None = None
        self._finishing = False
        self._counts = {"run/uploads": 0.0, "run/upload_failures": 0.0}
        self._metrics: deque[Metrics] = deque()
        self.uploading: str | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
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

    def take_metrics(self) -> Iterator[Metrics]:
        """Metrics of each upload that has ended since the last call."""
        while self._metrics:
            yield self._metrics.popleft()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._finishing)
                checkpoint, self._next = self._next, None
                if checkpoint is None:
                    break
                self.uploading = checkpoint.name
            problem = None
            try:
                self._upload(checkpoint)
            except Exception as error:  # clients of object stores raise errors of their own kinds
                problem = one_line(error, 300)
                self._log(f"checkpoint {checkpoint.name} could not be uploaded to {self._target}: {problem}")
            self.uploading = None
            tag = "run/uploads" if problem is None else "run/upload_failures"
            self._counts[tag] += 1
            self._metrics.append((checkpoint.step, checkpoint.images, {tag: self._counts[tag]}))
        # In this thread: a network that does not answer must not block the main thread.
        self._target.release(self._token)

    def _upload(self, checkpoint: Checkpoint) -> None:
        if any(step == checkpoint.step and self._is_good(name) for step, name in step_directories(self._target)):
            return
        path = self._target.begin(checkpoint.name, self._token)
        for name in checkpoint.manifest["files"]:
            with (
                self._source.open(f"{checkpoint.name}/{name}", "rb") as source,
                self._target.open(f"{path}/{name}", "wb") as target,
            ):
                shutil.copyfileobj(source, target, BLOCK)
        problem = Checkpoint(self._target, path, checkpoint.manifest).problem()
        if problem is not None:
            raise OSError(f"the copy differs: {problem}")
        uploaded = self._target.commit(path, checkpoint.name, encode(checkpoint.manifest), self._token)
        self._retention.verified.add(uploaded)
        self._retention.apply()

    def _is_good(self, name: str) -> bool:
        try:
            return open_checkpoint(self._target, name).problem() is None
        except Exception:
            return False
