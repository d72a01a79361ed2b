"""`VisionSpec`: the mathematics of a vision tower, normalised once.

Weights travel beside it as a mapping from these names to arrays (`i`: block; [out, in] as in torch's Linear). A layer
has a .bias where the spec says so, a norm a .bias and its own .weight where it is a layer norm:

    patch_embed.weight                 [hidden_size, 3 * patch_size^2], summed over the frames of a patch; .bias
    post_conv_norm                     [hidden_size]                                  where patch_norm
    position_table                     [position_table_size^2, hidden_size]
    blocks.i.attention_norm            [hidden_size]
    blocks.i.{query,key,value}.weight  [hidden_size, hidden_size]
    blocks.i.output.weight             [hidden_size, hidden_size]
    blocks.i.mlp_norm                  [hidden_size]
    blocks.i.gate.weight               [intermediate_size, hidden_size]               where gated
    blocks.i.up.weight                 [intermediate_size, hidden_size]
    blocks.i.down.weight               [hidden_size, intermediate_size]
    post_norm                          [hidden_size]

The merger makes features of what the last block leaves. Where it is `gated`:
    downsample.weight                  [output_size, merge_size^2 * hidden_size], patch after patch; .bias
    merger.projection.weight           [output_size, output_size]
    merger.norm.{weight,bias}          [output_size]
    merger.{gate,up}.weight            [merger_size, output_size]
    merger.down.weight                 [output_size, merger_size]
Otherwise, and the same with a norm for deepstack block k, on what that block leaves:
    deepstack.k.norm.{weight,bias}     [merge_size^2 * hidden_size]
    merger.up.{weight,bias}            [merger_size, merge_size^2 * hidden_size]
    merger.down.{weight,bias}          [output_size, merger_size]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NUM_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """`gated`: an MLP is down(silu(gate) * up), otherwise down(gelu(up)), with the approximation by tanh in blocks and
    biases everywhere. `deepstack`: blocks whose output is merged for the decoder's first layers, ascending."""

    patch_size: int  # pixels along one side
    temporal_patch_size: int
    merge_size: int  # patches along one side of what becomes one token
    position_table_size: int  # learned positions along one side
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    output_size: int  # the decoder's hidden size
    merger_size: int
    norm_eps: float  # of the blocks' norms
    rope_theta: float
    qkv_bias: bool = False
    merger_norm_eps: float = 1e-5
    norm: Literal["rms", "layer"] = "rms"  # of the blocks
    gated: bool = True
    patch_norm: bool = True
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of the learned positions
    deepstack: tuple[int, ...] = ()

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_width(self) -> int:
        return NUM_CHANNELS * self.patch_size**2

    @property
    def joined_size(self) -> int:
        """Of the patches of one token side by side."""
        return self.merge_size**2 * self.hidden_size

    @property
    def feature_size(self) -> int:
        """Of a token's row: its features in place of an embedding, then those of each deepstack block."""
        return (1 + len(self.deepstack)) * self.output_size

    @property
    def writers(self) -> tuple[str, ...]:
        """The layers whose products are features."""
        return "merger.down", *(f"deepstack.{index}.down" for index in range(len(self.deepstack)))
