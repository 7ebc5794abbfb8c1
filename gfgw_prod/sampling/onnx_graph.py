"""The one-step sampler as an ONNX graph: noise and class ids in, images out."""

from __future__ import annotations

import io
import os
import warnings

import torch
from torch import Tensor, nn

from gfgw_prod.distributed.cells import random_stream
from gfgw_prod.generator import OneStepGenerator
from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.sampling.trained import TrainedGenerator

OPSET = 17  # old enough for current runtimes, new enough for all operators here
TRACED_BATCH = 2
CHECKED_BATCHES = (1, 3)  # differ from TRACED_BATCH, to detect a batch size traced as a constant
TOLERANCE = 1e-4  # maximum difference from torch's images in [-1, 1]
LARGEST_BYTES = 2**31 - 2**24  # of weights: a protobuf ends at 2 GiB, minus room for the graph


class ClampedGenerator(nn.Module):
    """``G(z, 1)`` clamped to the data's range: noise ``(n, c, h, w)``, class ids ``(n,)`` -> images like the noise."""

    def __init__(self, generator: OneStepGenerator):
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            known = torch.arange(self.generator.num_classes)
            # An index out of bounds is an error, in torch and in onnxruntime on the CPU. A negative one would wrap.
            labels = known[torch.where(labels < 0, self.generator.num_classes, labels)]
        return self.generator.sample(noise, labels).clamp(-1, 1)


@torch.no_grad()
def to_onnx(trained: TrainedGenerator) -> tuple[bytes, float]:
    """Export the one-step sampler; return the graph and the maximum difference from torch's images.

    Inputs ``noise (batch, c, h, w)`` float32 and, if the generator is conditional, ``labels (batch,)`` int64; output
    ``images (batch, c, h, w)`` in [-1, 1], for any batch size. Metadata: ``trained.metadata``.

    Raises:
        UserError: if the weights are too large for one file, or the graph's images differ from torch's.
    """
    import onnx

    if sum(tensor.nbytes for tensor in trained.tensors.values()) > LARGEST_BYTES:
        raise UserError("--format onnx holds at most 2 GiB of weights; use --format safetensors")
    sampler = ClampedGenerator(trained.build()).eval()
    model = onnx.load_model_from_string(_traced(sampler, trained))
    onnx.helper.set_model_props(model, trained.metadata)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    difference = _difference(content, sampler, trained)
    if not difference <= TOLERANCE:  # also true for NaN
        raise UserError(f"the ONNX graph's images differ from torch's by {difference:.1e}; the weights may be at fault")
    return content, difference


def _inputs(sampler: ClampedGenerator, trained: TrainedGenerator, batch: int) -> dict[str, Tensor]:
    noise = torch.randn((batch, *trained.image_shape), generator=random_stream(0, "export", batch))
    classes = sampler.generator.num_classes
    return {"noise": noise, "labels": torch.arange(batch) % classes} if classes else {"noise": noise}


def _traced(sampler: ClampedGenerator, trained: TrainedGenerator) -> bytes:
    inputs = _inputs(sampler, trained, TRACED_BATCH)
    buffer = io.BytesIO()
    # torch's newer exporter takes ten times as long, needs two more packages, and fails on attention without a
    # dimension for heads. This one warns of its deprecation and of branches on the number of channels.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            sampler,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # a file object works too
            input_names=list(inputs),
            output_names=["images"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "images")},
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def _difference(content: bytes, sampler: ClampedGenerator, trained: TrainedGenerator) -> float:
    # Read at the import. Without it, onnxruntime keeps a device id and a database in the home directory.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in CHECKED_BATCHES:
        inputs = _inputs(sampler, trained, batch)
        [images] = session.run(["images"], {name: tensor.numpy() for name, tensor in inputs.items()})
        differences.append((torch.from_numpy(images) - sampler(**inputs)).abs().max())
    return float(torch.stack(differences).max())
