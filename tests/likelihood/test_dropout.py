"""Dropout off in training mode, functional dropout and gradient checkpointing included."""

import copy
import pickle

import pytest
import torch

from pluralpref.likelihood import answer_logps, disable_dropout, no_dropout

IDS = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
ANSWER = torch.zeros_like(IDS)
ANSWER[:, 5:] = 1


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_gpt2, tiny_llama):
    return tiny_gpt2(0, dropout=0.5) if request.param == "gpt2" else tiny_llama(0, attention_dropout=0.5)


def value_and_gradients(model):
    model.zero_grad()
    value = answer_logps(model, IDS, MASK, ANSWER).sum()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    for name in expected[1]:
        torch.testing.assert_close(found[1][name], expected[1][name], rtol=1e-4, atol=1e-5)


def test_these_models_do_drop_out(model):
    expected = value_and_gradients(model.eval())
    assert abs(value_and_gradients(model.train())[0] - expected[0]) > 1e-4


@pytest.mark.parametrize("checkpointing", [False, "non-reentrant", "reentrant"])
def test_training_mode_equals_evaluation_mode(model, checkpointing):
    expected = value_and_gradients(model.eval())
    config = copy.deepcopy(model.config.to_dict())
    disable_dropout(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    model.train()
    assert model.training
    calls = []
    body = model.base_model
    layers = body.h if hasattr(body, "h") else body.layers
    layers[0].mlp.register_forward_pre_hook(lambda *a: calls.append(1))
    answer_logps(model, IDS, MASK, ANSWER)  # the probe is behind us
    calls.clear()
    assert_same(value_and_gradients(model), expected)
    assert len(calls) == (2 if checkpointing else 1)  # the backward pass did run the layer again
    assert model.config.to_dict() == config


def test_inside_the_block_only(model):
    expected = value_and_gradients(model.eval())
    model.train()
    modes = [module.training for module in model.modules()]
    with no_dropout(model):
        assert_same(value_and_gradients(model), expected)
    assert [module.training for module in model.modules()] == modes
    assert "train" not in vars(model)
    assert abs(value_and_gradients(model)[0] - expected[0]) > 1e-4
    with pytest.raises(RuntimeError, match="on purpose"), no_dropout(model):
        raise RuntimeError("on purpose")
    assert [module.training for module in model.modules()] == modes


def test_restore(model):
    expected = value_and_gradients(model.eval())
    model.train()
    switch = disable_dropout(model)
    model.eval()
    model.train()
    assert_same(value_and_gradients(model), expected)
    with no_dropout(model):  # nothing to do, and nothing to undo
        pass
    assert_same(value_and_gradients(model), expected)
    switch.restore()
    switch.restore()
    assert abs(value_and_gradients(model)[0] - expected[0]) > 1e-4


def test_the_switch_survives_copies(model):
    expected = value_and_gradients(model.eval())
    disable_dropout(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.train()
        assert twin.training
        assert not model.training
        assert_same(value_and_gradients(twin), expected)
