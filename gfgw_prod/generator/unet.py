"""The U-Net of EDM ("DDPM++" in table 7 of Karras et al. 2022), for any image size.

Written from the papers (Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364). Parameters have the
names and shapes of the published networks, so that their weights can be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_POSITIONS = 10_000  # of the positional embedding


def _initialise(weight: Tensor, bias: Tensor | None, fans: int, scale: float) -> None:
    """Fill with ``scale`` times Xavier-uniform weights, for the sum of both fans, and zero bias."""
    bound = scale * math.sqrt(6 / fans)
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.zeros_(bias)


class Linear(nn.Linear):
    """Linear layer initialised with ``scale`` times Xavier-uniform weights and zero bias."""

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0):
        self.scale = scale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        _initialise(self.weight, self.bias, self.in_features + self.out_features, self.scale)


class Conv2d(nn.Conv2d):
    """Convolution with same padding, initialised with ``scale`` times Xavier-uniform weights and zero bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, scale: float = 1.0):
        self.scale = scale
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        area = self.kernel_size[0] * self.kernel_size[1]
        _initialise(self.weight, self.bias, self.in_channels * area + self.out_channels * area, self.scale)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with at most 32 groups, of at least 4 channels where possible.

    Its result has the type of its input, with sums in float32, as on a CPU and in EDM's own code. On a GPU, autocast
    would store input and result in float32.
    """

    def __init__(self, channels: int):
        groups = min(32, max(channels // 4, 1))
        while channels % groups:
            groups -= 1
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            # Unlike a CPU's, a GPU's kernel takes weights of the input's type only.
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """Sine and cosine features of a scalar, ``(n,)`` -> ``(n, channels)``; no parameters."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
        angles = x.float()[:, None] * (1 / MAX_POSITIONS) ** exponents
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Resample(nn.Module):
    """Down- or up-sampling by 2 with a box filter (EDM's ``resample_filter=[1, 1]``); no parameters."""

    def __init__(self, direction: str):
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return F.avg_pool2d(x, 2)
        if x.device.type != "cuda":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        with torch.autocast("cuda", enabled=False):  # which would copy in float32
            return F.interpolate(x, scale_factor=2, mode="nearest")


class UNetBlock(nn.Module):
    """Residual block that adds an embedding, with optional resampling and single-head self-attention.

    Maps ``x (n, in_channels, h, w)`` and ``embedding (n, emb_channels)`` to ``(n, out_channels, h', w')``. The side is
    halved with ``resample="down"`` and doubled with ``"up"``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: str | None = None,
        attention: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.dropout = dropout
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = Conv2d(in_channels, out_channels, 3)
        self.affine = Linear(emb_channels, out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, scale=1e-5)
        self.resample = Resample(resample) if resample else None
        skips = resample or in_channels != out_channels
        self.skip = Conv2d(in_channels, out_channels, 1) if skips else None
        self.norm2: GroupNorm | None = None
        if attention:
            self.norm2 = GroupNorm(out_channels)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, scale=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, 1, scale=1e-5)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # A block's input may also feed a skip connection: its gradient is a sum of three terms. The view adds this
        # block's two terms first; without it the order of the sum, and so the bits, differ under FSDP.
        residual = x = x.view_as(x)
        x = F.silu(self.norm0(x))
        if self.resample is not None:
            x, residual = self.resample(x), self.resample(residual)
        x = self.conv0(x)
        x = F.silu(self.norm1(x + self.affine(embedding)[:, :, None, None]))
        x = self.conv1(F.dropout(x, p=self.dropout, training=self.training))
        if self.skip is not None:
            residual = self.skip(residual)
        x = (x + residual) * math.sqrt(0.5)
        if self.norm2 is None:
            return x
        n, c, h, w = x.shape
        # Published weights order the channels of qkv as (c, 3), hence the reshape. One head: (3, n, 1, h*w, c).
        qkv = self.qkv(self.norm2(x)).reshape(n, 1, c, 3, h * w).permute(3, 0, 1, 4, 2)
        if qkv.is_cuda:
            qkv = qkv.contiguous()  # fused attention wants dense rows; the CPU's would change the bits of older runs
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))  # (n, 1, h*w, c)
        output: Tensor = (self.proj(attended.transpose(2, 3).reshape(n, c, h, w)) + x) * math.sqrt(0.5)
        return output


class SongUNet(nn.Module):
    """U-Net ``F(x, c_noise, labels)`` on images ``(n, image_channels, resolution, resolution)``.

    Args, besides those that ``GeneratorSettings`` describes:
        resolution: side of the square images, pixels.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        label_dim: width of the one-hot labels; 0 is unconditional.
        channels_last: of activations; weights keep the layout of shards and files.

    Raises:
        ValueError: if the side cannot be halved once per level.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        *,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dim: int = 0,
        channels_last: bool = False,
        checkpoint_activations: bool = False,
    ):
        super().__init__()
        self._channels_last, self._checkpoint_activations = channels_last, checkpoint_activations
        if resolution % 2 ** (len(channel_mult) - 1):
            levels = len(channel_mult)
            problem = f"a side of {resolution} pixels cannot be halved {levels - 1} times"
            raise ValueError(f"generator.channel_mult has {levels} levels, but {problem}")
        emb_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_label = Linear(label_dim, model_channels, scale=math.sqrt(label_dim)) if label_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)
        attends = set(attention_resolutions)

        def block(
            c_in: int, c_out: int, side: int, resample: str | None = None, attention: bool | None = None
        ) -> UNetBlock:
            attention = side in attends if attention is None else attention
            return UNetBlock(c_in, c_out, emb_channels, resample=resample, attention=attention, dropout=dropout)

        self.enc = nn.ModuleDict()
        skips: list[int] = []
        channels = image_channels
        for level, mult in enumerate(channel_mult):
            side = resolution >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = Conv2d(channels, model_channels, 3)
                channels = model_channels
            else:
                self.enc[f"{side}x{side}_down"] = block(channels, channels, side, resample="down", attention=False)
            skips.append(channels)
            for index in range(num_blocks):
                self.enc[f"{side}x{side}_block{index}"] = block(channels, model_channels * mult, side)
                channels = model_channels * mult
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            side = resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{side}x{side}_in0"] = block(channels, channels, side, attention=True)
                self.dec[f"{side}x{side}_in1"] = block(channels, channels, side, attention=False)
            else:
                self.dec[f"{side}x{side}_up"] = block(channels, channels, side, resample="up", attention=False)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and side in attends
                c_in = channels + skips.pop()
                self.dec[f"{side}x{side}_block{index}"] = block(c_in, model_channels * mult, side, attention=attention)
                channels = model_channels * mult
        self.dec[f"{resolution}x{resolution}_aux_norm"] = GroupNorm(channels)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = Conv2d(channels, image_channels, 3, scale=1e-5)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map images ``(n, c, r, r)``, noise levels ``(n,)``, one-hot labels ``(n, label_dim)`` to ``(n, c, r, r)``."""
        # The published networks swap the halves of the positional embedding to (cos, sin).
        embedding = self.map_noise(c_noise)
        embedding = embedding.unflatten(1, (2, -1)).flip(1).flatten(1).to(x.dtype)
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels.to(x.dtype))
        embedding = F.silu(self.map_layer0(embedding))
        embedding = F.silu(self.map_layer1(embedding))
        x = x.contiguous(memory_format=torch.channels_last if self._channels_last else torch.contiguous_format)
        skips = []
        for module in self.enc.values():
            x = self._run_block(module, x, embedding) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        *blocks, norm, conv = self.dec.values()
        for module in blocks:
            assert isinstance(module, UNetBlock)
            if module.conv0.in_channels != x.shape[1]:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run_block(module, x, embedding)
        output: Tensor = conv(F.silu(norm(x)))
        return output.contiguous()

    def _run_block(self, block: UNetBlock, x: Tensor, embedding: Tensor) -> Any:
        if self._checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, use_reentrant=False)  # with the same dropout masks
        return block(x, embedding)
