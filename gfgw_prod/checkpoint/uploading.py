"""Takes committed checkpoints from a local tier to a distant one in the background."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator

from gfgw_prod.checkpoint.finding import open_checkpoint, step_directories
from gfgw_prod.checkpoint.manifest import encode
from gfgw_prod.checkpoint.reading import Checkpoint
from gfgw_prod.checkpoint.retention import retain
from gfgw_prod.checkpoint.storage import BLOCK, MANIFEST, Storage
from gfgw_prod.process.exit_codes import one_line

News = tuple[int, int, dict[str, float]]


class Uploader:
    """Uploads one checkpoint at a time; where a slow network falls behind, the newest goes next. On rank 0."""

    def __init__(
        self,
        source: Storage,
        target: Storage,
        token: str,
        *,
        keep: int,
        keep_every_images: int,
        report: Callable[[str], None],
    ):
        self._source, self._target = source, target
        self._keep, self._keep_every = keep, keep_every_images
        self._report = report
        self._token = token
        self._verified: set[str] = set()
        self._wake = threading.Condition()
        self._next: Checkpoint | None = None
        self._ends = False
        self._counts = {"run/uploads": 0.0, "run/upload_failures": 0.0}
        self._news: deque[News] = deque()
        self.uploading: str | None = None  # what must not be removed meanwhile
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """Uploads a checkpoint as soon as the one before is through, unless a newer one comes first."""
        with self._wake:
            self._next = checkpoint
            self._wake.notify()

    def finish(self) -> threading.Thread:
        """The thread, which ends when the newest has been uploaded, and gives the claim back."""
        with self._wake:
            self._ends = True
            self._wake.notify()
        return self._thread

    def take_metrics(self) -> Iterator[News]:
        """What has ended since the last call: step, images and metrics by tag."""
        while self._news:
            yield self._news.popleft()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._ends)
                checkpoint, self._next = self._next, None
                if checkpoint is None:
                    break
                self.uploading = checkpoint.name
            problem = None
            try:
                self._upload(checkpoint)
            except Exception as error:  # clients of object stores raise kinds of their own
                problem = one_line(error, 300)
                self._report(f"checkpoint {checkpoint.name} could not be uploaded to {self._target}: {problem}")
            self.uploading = None
            tag = "run/uploads" if problem is None else "run/upload_failures"
            self._counts[tag] += 1
            self._news.append((checkpoint.step, checkpoint.images, {tag: self._counts[tag]}))
        # Here, for a network that does not answer must not hold up the main thread.
        self._target.release(self._token)

    def _upload(self, checkpoint: Checkpoint) -> None:
        if any(step == checkpoint.step and self._is_whole(name) for step, name in step_directories(self._target)):
            return
        step = checkpoint.name
        place = self._target.begin(step, self._token)
        for name in checkpoint.manifest["files"]:
            with (
                self._source.open(f"{step}/{name}", "rb") as source,
                self._target.open(f"{place}/{name}", "wb") as target,
            ):
                shutil.copyfileobj(source, target, BLOCK)
        problem = Checkpoint(self._target, place, checkpoint.manifest).problem()
        if problem is not None:
            raise OSError(f"what arrived differs: {problem}")
        if not self._target.holds(self._token):
            raise OSError("another process uploads there now")
        self._target.write(f"{place}/{MANIFEST}", encode(checkpoint.manifest))
        self._target.commit(place, step)
        self._verified.add(place)
        retain(self._target, self._keep, self._keep_every, self._verified)

    def _is_whole(self, name: str) -> bool:
        try:
            return open_checkpoint(self._target, name).problem() is None
        except Exception:
            return False
