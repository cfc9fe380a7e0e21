"""Log-probabilities block by block of the vocabulary, against plain float64."""

import pytest
import torch
from torch import nn

from pluralpref.likelihood import linear_logps as module
from pluralpref.likelihood.head_logps import LOGITS_BUDGET_BYTES, head_logps
from pluralpref.likelihood.linear_logps import is_plain_linear, linear_logps

TOKENS, HIDDEN, VOCABULARY = 7, 12, 203


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * TOKENS * 32)
    monkeypatch.setattr(module, "_FEWEST_COLUMNS", 32)  # seven blocks, the last one cut short


def case(bias=False, scale=1.0, seed=0):
    torch.manual_seed(seed)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    hidden = (torch.randn(TOKENS, HIDDEN) * scale).requires_grad_()
    targets = torch.tensor([0, 31, 32, 202, 150, 150, 63])  # edges of blocks, and a repeated one
    return head, hidden, targets


def exact(head, hidden, targets, weights):
    """Values and gradients (hidden, weight, bias) in float64."""
    inputs = [hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()]
    if head.bias is not None:
        inputs.append(head.bias.detach().double().requires_grad_())
    logps = nn.functional.linear(*inputs).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return logps.detach(), torch.autograd.grad(logps @ weights.double(), inputs)


def run(head, hidden, targets, weights, budget):
    logps = linear_logps(head, hidden, targets, budget)
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return logps.detach(), torch.autograd.grad(logps @ weights, wanted)


@pytest.mark.parametrize("budget", [LOGITS_BUDGET_BYTES, 0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_values_and_gradients(budget, bias, scale):
    head, hidden, targets = case(bias, scale)
    weights = torch.linspace(-2, 3, TOKENS)
    logps, gradients = run(head, hidden, targets, weights, budget)
    expected, expected_gradients = exact(head, hidden, targets, weights)
    # Logits of size 30 are themselves known to 30 times float32's rounding.
    torch.testing.assert_close(logps.double(), expected, rtol=2e-6, atol=2e-6 * max(1.0, scale))
    for found, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=2e-6 * max(1.0, scale))


def test_the_value_is_the_same_whatever_is_kept():
    head, hidden, targets = case()
    kept, recomputed = (linear_logps(head, hidden, targets, budget) for budget in (LOGITS_BUDGET_BYTES, 0))
    with torch.no_grad():
        nothing = linear_logps(head, hidden, targets, 0)
    head.requires_grad_(False)
    frozen = linear_logps(head, hidden, targets, 0)
    for other in (recomputed, nothing, frozen):
        assert torch.equal(kept, other)


def test_a_frozen_matrix_keeps_nothing_of_the_vocabularys_size():
    head, hidden, targets = case()
    head.requires_grad_(False)
    weights = torch.linspace(-2, 3, TOKENS)
    sizes = []

    def pack(tensor):
        if tensor is not head.weight:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps = linear_logps(head, hidden, targets, LOGITS_BUDGET_BYTES)
    assert max(sizes) == TOKENS * HIDDEN
    (found,) = torch.autograd.grad(logps @ weights, [hidden])
    torch.testing.assert_close(found.double(), exact(head, hidden, targets, weights)[1][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_extremes(frozen):
    """Probabilities that are 0 in float32, and blocks of tokens that can't come."""
    head, hidden, targets = case(bias=True)
    with torch.no_grad():
        head.bias[40] = 500.0
        head.bias[64:96] = -torch.inf
    head.requires_grad_(not frozen)
    weights = torch.ones(TOKENS)
    logps, gradients = run(head, hidden, targets, weights, LOGITS_BUDGET_BYTES)
    expected, expected_gradients = exact(head, hidden, targets, weights)
    assert (expected < -400).all()
    torch.testing.assert_close(logps.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradients[0].double(), expected_gradients[0], rtol=1e-5, atol=1e-6)


def test_only_one_input_needs_a_gradient():
    head, hidden, targets = case()
    weights = torch.linspace(-2, 3, TOKENS)
    loss = linear_logps(head, hidden.detach(), targets, LOGITS_BUDGET_BYTES) @ weights
    (found,) = torch.autograd.grad(loss, [head.weight])
    torch.testing.assert_close(found.double(), exact(head, hidden, targets, weights)[1][1], rtol=1e-4, atol=1e-6)


def test_what_is_not_plain_is_left_to_the_head():
    head, hidden, targets = case()
    assert is_plain_linear(head, hidden)
    assert not is_plain_linear(head, hidden.bfloat16())
    assert not is_plain_linear(nn.Sequential(head), hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_plain_linear(head, hidden)
    doubled = head.register_forward_hook(lambda module, args, output: output * 2)
    assert not is_plain_linear(head, hidden)
    expected = (head(hidden)).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(head_logps(head, hidden, targets, LOGITS_BUDGET_BYTES), expected)
    doubled.remove()
    head.forward = lambda hidden: hidden @ head.weight.t() * 3
    assert not is_plain_linear(head, hidden)
