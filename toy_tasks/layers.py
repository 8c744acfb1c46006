"""Small parts of the toy transformer: hook points, norms, weight matrices."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from toy_tasks.config import ToyConfig

EPS = 1e-5  # added to the variance, torch's default and the paper's


class HookPoint(nn.Identity):
    """A named place. A forward hook on it reads the tensor or returns a new one."""

    @property
    def in_use(self) -> bool:
        """Whether any hook sits here."""
        return bool(
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        )


class Norm(nn.Module):
    """LayerNorm, RMSNorm or none over d_model.

    `hook_scale` is the divisor, [batch pos 1]: an edit there freezes it.
    `hook_normalized` is the output, gain and bias included.
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.kind = config.norm
        if config.norm != "none":
            self.w = nn.Parameter(torch.ones(config.d_model))
            self.hook_scale = HookPoint()
        if config.norm == "layer":
            self.b = nn.Parameter(torch.zeros(config.d_model))
        self.hook_normalized = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual, normed at every position."""
        return self.hook_normalized(self._normalised(x))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        if not self.hook_scale.in_use:  # one fused kernel instead of six
            if self.kind == "layer":
                return F.layer_norm(x, x.shape[-1:], self.w, self.b, EPS)
            return F.rms_norm(x, x.shape[-1:], self.w, EPS)
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + EPS).sqrt())
        x = x / scale * self.w
        return x + self.b if self.kind == "layer" else x


def weight(*shape: int) -> nn.Parameter:
    """A matrix, or one per head, [..., inputs, outputs]; the model draws its values."""
    return nn.Parameter(torch.empty(*shape))
