"""transformers: the attention of Longformer and of BigBird, and the chunk scan of Mamba-2."""

import torch
from torch import Tensor, nn

from benchmarks.peer_declaration import Peer
from benchmarks.peer_parts import Held, at_rest, joined, parted
from variants import Problem
from variants.ssd import rates, step_sizes
from variants.variant import Attention

PACKAGE = "transformers"
WINDOW, GLOBAL_TOKENS = 256, 16
BLOCK, RANDOM = 64, 3
CHUNK = 64


def longformer(problem: Problem) -> Attention:
    """Its self-attention without projections; global tokens get the same q, k and v as the others."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    width = problem.heads * problem.head_dim
    config = LongformerConfig(
        hidden_size=width,
        num_attention_heads=problem.heads,
        attention_window=[WINDOW],
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, layer_id=0)
    at_rest(module)
    module.query, module.key, module.value = Held(copied=True), Held(), Held()
    module.query_global, module.key_global, module.value_global = nn.Identity(), Held(), Held()
    mask = torch.zeros(problem.batch, problem.tokens)
    mask[:, :GLOBAL_TOKENS] = 10000.0  # its mark of a global token

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Its modules see tokens before batch items.
        module.query.held = joined(q).transpose(0, 1)
        module.key.held = module.key_global.held = joined(k).transpose(0, 1)
        module.value.held = module.value_global.held = joined(v).transpose(0, 1)
        out = module(
            joined(q),
            attention_mask=mask,
            is_index_masked=mask < 0,
            is_index_global_attn=mask > 0,
            is_global_attn=True,
        )[0]
        return parted(out, problem)

    return run


def longformer_workspace(problem: Problem) -> int:
    """Scores of the window and the global keys several times over, the mask's beside them, and copies of q, k, v."""
    rows = problem.batch * problem.heads * problem.tokens
    return 9 * rows * (WINDOW + GLOBAL_TOKENS + 1) * problem.element_bytes + 12 * problem.query_bytes


def bigbird(problem: Problem) -> Attention:
    """Its block-sparse self-attention without projections."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(
        hidden_size=problem.heads * problem.head_dim,
        num_attention_heads=problem.heads,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        max_position_embeddings=problem.tokens,
    )
    module = BigBirdBlockSparseAttention(config, seed=0)
    at_rest(module)
    module.query, module.key, module.value = Held(), Held(), Held()
    everything = torch.ones(problem.batch, problem.tokens)
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(everything, BLOCK)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module.query.held, module.key.held, module.value.held = joined(q), joined(k), joined(v)
        return parted(module(joined(q), band, from_mask, to_mask, blocked, blocked)[0], problem)

    return run


def bigbird_workspace(problem: Problem) -> int:
    """Scores with eight blocks several times over, gathered keys and values, and all weights as one matrix."""
    rows = problem.batch * problem.heads * problem.tokens
    return (6 * rows * 8 * BLOCK + rows * problem.kv_tokens) * problem.element_bytes + 20 * problem.query_bytes


def chunk_scan(problem: Problem) -> Attention:
    """The scan alone: C = q, B = k, x = v, with the definition's Δ and A."""
    from transformers.models.mamba2 import modeling_mamba2

    steps = step_sizes(problem.heads, problem.tokens).float().T.contiguous().expand(problem.batch, -1, -1)
    decay = rates(problem.heads).float()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = modeling_mamba2.mamba2_chunk_scan(v, steps, decay, k, q, CHUNK)
        return out

    return run


def chunk_scan_workspace(problem: Problem) -> int:
    """Scores within the chunks, their masks, and the decay from chunk to chunk."""
    scores = problem.batch * problem.heads * problem.tokens * CHUNK
    chunks = problem.batch * problem.heads * (problem.tokens // CHUNK + 1) ** 2
    return (8 * scores + 6 * chunks) * problem.element_bytes + 12 * problem.query_bytes


PEERS = (
    Peer(
        form="longformer",
        package=PACKAGE,
        variant="global_window",
        parameters={"window": WINDOW, "global_tokens": GLOBAL_TOKENS},
        causal=False,
        build=longformer,
        workspace_bytes=longformer_workspace,
        layout="bnhd",
        multiple=WINDOW,
        note="without projections; a copy of q is timed, since it writes into its queries",
    ),
    Peer(
        form="bigbird",
        package=PACKAGE,
        variant="bigbird",
        parameters={"block": BLOCK, "random": RANDOM},
        causal=False,
        build=bigbird,
        workspace_bytes=bigbird_workspace,
        layout="bnhd",
        multiple=BLOCK,
        agrees=False,
        note="without projections; outside training each of its random blocks is block 0, which then counts four times",
    ),
    Peer(
        form="mamba2-scan",
        package=PACKAGE,
        variant="ssd",
        causal=True,
        build=chunk_scan,
        workspace_bytes=chunk_scan_workspace,
        layout="bnhd",
        note="with our Δ and A; without the convolution, the gate and the residual of a layer",
    ),
)
