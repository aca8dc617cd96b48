"""The tree of prefixes holds every sequence once, and no token twice that follows the same tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from research.training.verl.cpu.micro_batches import grown, padded
from research.training.verl.cpu.prefix_tree import LENGTH_STEP, PrefixTree

rows_of_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


def tensors(rows):
    return [torch.tensor(row) for row in sorted(rows)]


@given(rows_of_tokens)
def test_paths_lead_through_each_sequence(rows):
    rows = tensors(rows)
    tree = PrefixTree(rows)
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.ids[path].equal(row)
        assert tree.positions[path].equal(torch.arange(len(row)))


@given(rows_of_tokens)
def test_a_node_is_a_prefix(rows):
    rows = tensors(rows)
    prefixes = {tuple(row[: end + 1].tolist()) for row in rows for end in range(len(row))}
    tree = PrefixTree(rows)
    assert sum(tree.added[:-1]) == len(prefixes)
    assert len(tree.ids) % LENGTH_STEP == 0 and len(tree.ids) - len(prefixes) < LENGTH_STEP


@given(rows_of_tokens, st.integers(1, 30))
def test_micro_batches_hold_each_row_once_within_the_limit(rows, most):
    rows = tuple(map(torch.tensor, rows))
    for groups, tokens in (
        (grown(rows, most), lambda group: sum(PrefixTree([rows[row] for row in group]).added[:-1])),
        (padded(rows, most), lambda group: len(group) * max(len(rows[row]) for row in group)),
    ):
        assert sorted(row for group in groups for row in group) == list(range(len(rows)))
        assert all(tokens(group) <= most or len(group) == 1 for group in groups)


@given(rows_of_tokens, st.integers(0, 2**16))
def test_attention_is_that_of_the_single_sequences(rows, seed):
    """Values and gradients, which add up over the sequences that have a node in common."""
    rows = tensors(rows)
    tree = PrefixTree(rows)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randn(3, 1, 2, len(tree.ids), 4, generator=generator, dtype=torch.float64)
    packed, single = nodes.clone().requires_grad_(), nodes.clone().requires_grad_()
    found = tree.attend(*packed, scaling=0.5)
    whole = []
    for path in tree.paths:
        parts = single[:, :, :, path]
        whole.append(scaled_dot_product_attention(*parts, is_causal=True, scale=0.5))
        torch.testing.assert_close(found[:, :, path], whole[-1])
    torch.cat([found[:, :, path] for path in tree.paths], 2).square().sum().backward()
    torch.cat(whole, 2).square().sum().backward()
    torch.testing.assert_close(packed.grad, single.grad)
