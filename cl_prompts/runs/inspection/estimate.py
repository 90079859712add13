"""`Estimate`: counted work at measured speed."""

from __future__ import annotations

from dataclasses import dataclass

from cl_prompts.evaluation.images import CACHE_BYTES
from cl_prompts.runs.build import Data
from cl_prompts.runs.inspection.measurement import Measurement
from cl_prompts.runs.inspection.work import Work
from cl_prompts.runs.schema import RunConfig


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take, in seconds and bytes.

    Attributes:
        preparation: until training starts.
        training: all updates, with loading.
        evaluation: all evaluations.
        memory: lower bound of the peak of the process, without what evaluation batches larger than the measured one
            take; None where the system does not tell.
        gpu_memory: the same of what tensors take on the GPU; None without one.
    """

    preparation: float
    training: float
    evaluation: float
    memory: int | None
    gpu_memory: int | None

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.preparation + self.training + self.evaluation


def estimate(config: RunConfig, data: Data, work: Work, measured: Measurement, preparation: float) -> Estimate:
    """Everything is taken as proportional to the images that are passed.

    Args:
        config: of the run.
        data: its images.
        work: what it has to do.
        measured: how fast a part of it was.
        preparation: seconds until training could start.
    """
    scale = config.protocol.stream_batch / measured.batch_size
    evaluated = work.evaluations * work.test_images if measured.whole_test_set else work.evaluated_images
    height, width = data.test.image_shape
    # The evaluation keeps the test images it has read where they fit; the measurement has read a few.
    decoded = work.test_images * 3 * height * width
    kept = decoded if decoded <= CACHE_BYTES else 0
    larger_batches = round(measured.batch_memory * (scale - 1))
    return Estimate(
        preparation=preparation,
        training=work.rows * measured.seconds_per_row,
        evaluation=work.test_images * measured.seconds_once + evaluated * measured.seconds_each,
        memory=None if measured.memory is None else measured.memory + larger_batches + kept,
        gpu_memory=None if measured.gpu_memory is None else round(measured.gpu_memory * scale),
    )
