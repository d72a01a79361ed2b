"""`VisionSpec`: the mathematics of a vision tower, normalised once.

Weights travel beside it as a mapping from these names to arrays (`i`: block; [out, in] as in torch's Linear):

    patch_embed.weight                 [hidden_size, 3 * patch_size^2], summed over the frames of a patch; .bias
    post_conv_norm                     [hidden_size]
    position_table                     [position_table_size^2, hidden_size]
    blocks.i.attention_norm            [hidden_size]
    blocks.i.{query,key,value}.weight  [hidden_size, hidden_size]           (+ .bias where qkv_bias)
    blocks.i.output.weight             [hidden_size, hidden_size]
    blocks.i.mlp_norm                  [hidden_size]
    blocks.i.{gate,up}.weight          [intermediate_size, hidden_size]
    blocks.i.down.weight               [hidden_size, intermediate_size]
    post_norm                          [hidden_size]
    downsample.weight                  [output_size, merge_size^2 * hidden_size], patch after patch; .bias
    merger.projection.weight           [output_size, output_size]
    merger.norm.{weight,bias}          [output_size]
    merger.{gate,up}.weight            [merger_size, output_size]
    merger.down.weight                 [output_size, merger_size]
"""

from __future__ import annotations

from dataclasses import dataclass

NUM_CHANNELS = 3
LAYER_NORM_EPS = 1e-5  # of the merger's norm, in every model


@dataclass(frozen=True, slots=True)
class VisionSpec:
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
    norm_eps: float
    rope_theta: float
    qkv_bias: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_width(self) -> int:
        return NUM_CHANNELS * self.patch_size**2
