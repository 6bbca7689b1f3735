"""Kernels for transformer decoders as JAX functions, each with a plain JAX reference."""

from xla_ops._attention import attention as attention
from xla_ops._attention_block import attention_block as attention_block
from xla_ops._decode_attention import decode_attention as decode_attention
from xla_ops._decode_step import HeadWeights as HeadWeights
from xla_ops._decode_step import decode_step as decode_step
from xla_ops._decode_step import decode_step_bytes as decode_step_bytes
from xla_ops._decode_step import decode_step_failure as decode_step_failure
from xla_ops._decode_step import decode_step_fits as decode_step_fits
from xla_ops._decode_step import decode_step_problem as decode_step_problem
from xla_ops._decoder_layer import decoder_layer as decoder_layer
from xla_ops._embedding import embedding as embedding
from xla_ops._kv_append import kv_append as kv_append
from xla_ops._layer import AttentionWeights as AttentionWeights
from xla_ops._layer import KvCache as KvCache
from xla_ops._layer import LayerOptions as LayerOptions
from xla_ops._layer import MlpWeights as MlpWeights
from xla_ops._layer import Tokens as Tokens
from xla_ops._layer import workspace_bytes as workspace_bytes
from xla_ops._layer_norm import layer_norm as layer_norm
from xla_ops._linear import linear as linear
from xla_ops._mlp import mlp as mlp
from xla_ops._mlp_block import mlp_block as mlp_block
from xla_ops._rms_norm import rms_norm as rms_norm
from xla_ops._rotary import rotary as rotary
from xla_ops._rotary import rotary_table as rotary_table
from xla_ops._sample import sample as sample
