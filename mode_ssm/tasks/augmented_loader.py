"""Training batches, augmented on the device of the model while the step before them runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mode_ssm.data.augmentation import BatchAugmentation
from mode_ssm.data.batch import Batch
from mode_ssm.tasks.task import ResumableLoader


class AugmentedLoader:
    """A loader of recorded features on the CPU -> a loader of augmented ones on a device (a `ResumableLoader`)."""

    def __init__(self, recorded: ResumableLoader, augmentation: BatchAugmentation) -> None:
        self.recorded, self.augmentation = recorded, augmentation
        self.steps_per_epoch = recorded.steps_per_epoch

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches `start_batch`.. of `epoch` on this rank."""
        return one_ahead(self.recorded.epoch(epoch, start_batch), lambda batch: self.augmentation(batch, epoch))


def one_ahead(batches: Iterator[Batch], change: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """change(batch) of every batch, computed by a thread while the consumer works on the one before."""
    with ThreadPoolExecutor(1, "augmentation") as thread:
        ready: Future[Batch] | None = None
        for batch in batches:
            coming = thread.submit(change, batch)
            if ready is not None:
                yield ready.result()
            ready = coming
        if ready is not None:
            yield ready.result()
