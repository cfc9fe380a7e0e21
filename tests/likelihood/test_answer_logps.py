"""Answer log-probabilities against the naive way through all logits, for models of several kinds."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers

from pluralpref.errors import DataError
from pluralpref.likelihood import answer_logps, disable_dropout, frozen_copy, pair_logps
from pluralpref.likelihood.causal_lm import logits_route

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def _llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def _qwen2():
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, tie_word_embeddings=True))


def _gpt2():
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return transformers.GPT2LMHeadModel(config)


def _gpt_neox():
    settings = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**settings))


def _gemma2():
    # A cap of 0.5 bites at these weights: forgetting it would show.
    config = transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5)
    return transformers.Gemma2ForCausalLM(config)


def _granite():
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**SMALL, logits_scaling=0.25))


def _cohere():
    return transformers.CohereForCausalLM(transformers.CohereConfig(**SMALL, logit_scale=4.0))


MODELS = {
    "llama": (_llama, "head"),
    "qwen2": (_qwen2, "head"),
    "gpt2": (_gpt2, "head"),
    "gpt_neox": (_gpt_neox, "head"),
    "gemma2": (_gemma2, "masked"),
    "granite": (_granite, "masked"),
    "cohere": (_cohere, "masked"),
}


def make(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name][0]().float().eval()


def batch(lengths=((5, 4), (3, 7), (9, 1), (2, 2)), side="right", seed=0):
    """Rows of (prompt, answer) lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = max(p + a for p, a in lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(lengths):
        start = 0 if side == "right" else width - prompt - answer
        ids[row, start : start + prompt + answer] = torch.randint(2, 300, (prompt + answer,), generator=generator)
        attention[row, start : start + prompt + answer] = 1
        completion[row, start + prompt : start + prompt + answer] = 1
    return ids, attention, completion


def naive(model, ids, attention, completion):
    """Every row alone, without padding, through all logits and log-softmax in float64."""
    sums = []
    for row in range(ids.shape[0]):
        real = attention[row].bool()
        tokens, scored = ids[row][real], completion[row][real].bool()
        logits = model(input_ids=tokens[None]).logits[0].double()
        logps = logits.log_softmax(-1)[:-1].gather(-1, tokens[1:, None])[:, 0]
        sums.append(logps[scored[1:]].sum())
    return torch.stack(sums)


def gradients(model, value):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_values_and_gradients_are_the_naive_ones(name, side):
    model, rows = make(name), batch(side=side)
    logps = answer_logps(model, *rows)
    expected = naive(model, *rows)
    assert logits_route(model, *rows[:2]).kind == MODELS[name][1]
    assert logps.dtype == torch.float64
    assert logps.shape == (4,)
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-5)
    ours, theirs = gradients(model, (WEIGHTS * logps).sum()), gradients(model, (WEIGHTS * expected).sum())
    assert max(float(g.abs().max()) for g in theirs) > 1e-2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_what_follows_the_head_matters_here(name):
    # The naive values differ from those of the bare head by far more than the tolerance above.
    model, (ids, attention, completion) = make(name), batch(lengths=((3, 7),))
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
        bare = model.lm_head(hidden)[0].double().log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        assert abs(bare[completion[0, 1:].bool()].sum() - naive(model, ids, attention, completion)[0]) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_chunks_change_nothing(name):
    model, rows = make(name), batch()
    whole, chunked = answer_logps(model, *rows), answer_logps(model, *rows, logits_budget_bytes=1)
    torch.testing.assert_close(whole, chunked, rtol=1e-7, atol=1e-6)
    for a, b in zip(
        gradients(model, (WEIGHTS * whole).sum()), gradients(model, (WEIGHTS * chunked).sum()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            answer_logps(model, *rows, logits_budget_bytes=1), whole.detach(), rtol=1e-7, atol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_batch_mates_do_not_matter(name):
    # Gemma 2's eager attention takes its softmax in float32, where a float64 mask of padding becomes -inf.
    model, atol = (make(name), 2e-5) if name == "gemma2" else (make(name).double(), 5e-6)
    right, left = batch(side="right"), batch(side="left")
    with torch.no_grad():
        together = answer_logps(model, *right)
        torch.testing.assert_close(answer_logps(model, *left), together, rtol=0, atol=atol)
        for row in range(4):
            alone = [column[row : row + 1, : right[1][row].sum()] for column in right]
            torch.testing.assert_close(answer_logps(model, *alone), together[row : row + 1], rtol=0, atol=atol)


def test_the_mode_and_the_generator_are_left_alone(tiny_gpt2):
    model = tiny_gpt2(0, dropout=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    logits_route(model, *batch()[:2])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(before, torch.random.get_rng_state())


def test_pairs_are_chosen_rows_first(tiny_llama):
    model, rows = tiny_llama(0).eval(), batch()
    names = ("input_ids", "attention_mask", "completion_mask")
    with torch.no_grad():
        pair = pair_logps(model, dict(zip(names, rows, strict=True)))
        flat = answer_logps(model, *rows)
    assert torch.equal(pair.chosen, flat[:2])
    assert torch.equal(pair.rejected, flat[2:])
    with pytest.raises(DataError, match="an even number of rows, chosen rows first; got 3"):
        pair_logps(model, {name: column[:3] for name, column in zip(names, rows, strict=True)})


def test_an_answer_without_context_is_refused(tiny_llama):
    ids, attention, completion = batch()
    first = completion.clone()
    first[2, 0] = 1
    with pytest.raises(DataError, match=r"rows \[2\] of the batch mark a token as answer"):
        answer_logps(tiny_llama(0), ids, attention, first)
    padding = completion.clone()
    padding[3, -1] = 1
    with pytest.raises(DataError, match=r"rows \[3\] of the batch mark a token as answer that is padding"):
        answer_logps(tiny_llama(0), ids, attention, padding)
    with pytest.raises(DataError, match="must have the same shape"):
        answer_logps(tiny_llama(0), ids, attention[:, 1:], completion)


def test_an_empty_answer_has_log_probability_zero(tiny_llama):
    with torch.no_grad():
        logps = answer_logps(tiny_llama(0).eval(), *batch(lengths=((4, 0), (2, 3))))
    assert logps[0].item() == 0
    assert logps[1].item() < -1


def test_copies_are_probed_by_themselves():
    model, rows = make("llama"), batch()
    with torch.no_grad():
        one, two = answer_logps(model, *rows), answer_logps(copy.deepcopy(model), *rows)
    assert torch.equal(one, two)


def test_log_softmax_of_a_bfloat16_model_is_in_float32():
    model, (ids, attention, completion) = make("llama").bfloat16(), batch()
    with torch.no_grad():
        found = answer_logps(model, ids, attention, completion)
        hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state
        logps = model.lm_head(hidden).float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (logps.double() * completion[:, 1:]).sum(1), rtol=0, atol=1e-5)


class Recurrent(torch.nn.Module):
    """A language model of somebody's own, which only gives all logits."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 8)
        self.output = torch.nn.Linear(8, 300)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.output(self.embedding(input_ids).cumsum(1)))


def test_any_other_model_goes_through_its_own_forward(caplog):
    torch.manual_seed(0)
    model, rows = Recurrent(), batch()
    with caplog.at_level("WARNING"):
        found = answer_logps(model, *rows)
        answer_logps(model, *rows)
    assert logits_route(model, *rows[:2]).kind == "full"
    assert [message.split(" computes")[0] for message in caplog.messages] == ["Recurrent"]  # said once
    torch.testing.assert_close(found, naive(model, *rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_adapters(name):
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    targets = ["c_attn", "c_fc"] if name == "gpt2" else ["q_proj", "up_proj"]
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets, fan_in_fan_out=name == "gpt2")
    plain, rows = make(name), batch()
    model = peft.get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
        disable_dropout(model)
        found = answer_logps(model.train(), *rows)
        torch.testing.assert_close(found, naive(model.eval(), *rows), rtol=0, atol=1e-5)
        assert (found - answer_logps(plain, *rows)).abs().max() > 1e-3
        with model.disable_adapter():
            torch.testing.assert_close(answer_logps(model, *rows), answer_logps(plain, *rows), rtol=0, atol=1e-5)
        # The reference is the policy with its adapters as they stand, not the base model.
        assert torch.equal(answer_logps(frozen_copy(model), *rows), found)
