"""Rows with one copy of each prompt against padded rows."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError
from pluralpref.likelihood import (
    answer_logps,
    disable_dropout,
    frozen_copy,
    log_ratio_margins,
    pair_logps,
    shared_prefix,
)
from pluralpref.likelihood.pair_layout import choose_layout, shared_rows
from pluralpref.likelihood.shared_attention import (
    _pairs_mask,
    _suffix_mask,
    install_shared_attention,
    uninstall_shared_attention,
)
from pluralpref.likelihood.shared_prefix import shared_answer_logps

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
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT2 = {
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=None),
    "mistral, window 5": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**NEOX),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}
#: Of prompt, chosen and rejected answer.
LENGTHS = ((5, 4, 9), (1, 1, 1), (12, 7, 2), (3, 20, 6))
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


def make(config, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, **changes).double().eval()


def pairs(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {n: torch.randint(2, 300, (count,), generator=generator).tolist() for n, count in zip(names, row, strict=True)}
        for row in lengths
    ]
    return PreferenceCollator(0)(rows)


def padded_of(batch):
    return batch["input_ids"], batch["attention_mask"], batch["completion_mask"]


def value_and_gradients(model, logps):
    value = (torch.cat([WEIGHTS, -WEIGHTS]) * logps).sum()
    gradients = torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])
    return logps.detach(), gradients


def assert_same(found, expected):
    """Norms, rotations and log-softmax are in float32 whatever the model's dtype."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-7, atol=2e-6)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["ragged", "batched"])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_are_those_of_padded_rows(name, layout, checkpointing):
    """In float64, where rounding hides little. A window of 5 is shorter than most answers."""
    model, batch = make(CONFIGS[name]()), pairs()
    expected = value_and_gradients(model, answer_logps(model, *padded_of(batch)))
    install_shared_attention(model)
    if checkpointing:
        model.gradient_checkpointing_enable(
            {"use_reentrant": False}
        )  # before, since it leaves layers in evaluation out
        disable_dropout(model.train())
    found = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], layout)
    assert_same(value_and_gradients(model, found), expected)
    # What isn't laid out so is attended to as before.
    assert_same(value_and_gradients(model, answer_logps(model, *padded_of(batch))), expected)


@pytest.mark.parametrize("layout", ["ragged", "batched"])
def test_nothing_is_seen_across_answers_and_pairs(layout):
    """One more token anywhere changes the answers that follow it, and no others."""
    model, batch = make(CONFIGS["llama"]()), pairs()
    install_shared_attention(model)

    def logps(ids):
        return shared_answer_logps(model, ids, batch["pair_lengths"], layout).detach()

    before = logps(batch["input_ids"])
    count = len(LENGTHS)
    for pair, (prompt, chosen, _) in enumerate(LENGTHS):
        for row, place, changed in (
            (pair, prompt, {pair}),
            (pair, prompt + chosen - 1, {pair}),
            (pair + count, prompt, {pair + count}),
        ):
            ids = batch["input_ids"].clone()
            ids[row, place] = (ids[row, place] + 7) % 300
            after = logps(ids)
            assert {i for i in range(2 * count) if after[i] != before[i]} == changed
        ids = batch["input_ids"].clone()
        ids[[pair, pair + count], 0] = (ids[pair, 0] + 7) % 300
        after = logps(ids)
        assert {i for i in range(2 * count) if after[i] != before[i]} == {pair, pair + count}


@pytest.mark.parametrize("layout", ["ragged", "batched"])
def test_batch_mates_do_not_matter(layout):
    model, batch = make(CONFIGS["gpt_neox"]()), pairs()
    install_shared_attention(model)
    together = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], layout)
    for pair in range(len(LENGTHS)):
        rows = [pair, pair + len(LENGTHS)]
        alone = shared_answer_logps(model, batch["input_ids"][rows], batch["pair_lengths"][[pair]], layout)
        torch.testing.assert_close(alone, together[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [((4, 0, 3),), ((4, 3, 0), (2, 1, 1)), ((1, 1, 40),), ((60, 1, 1), (1, 60, 1))])
@pytest.mark.parametrize("layout", ["ragged", "batched"])
def test_lengths_at_the_edges(lengths, layout):
    model, batch = make(CONFIGS["llama"]()), pairs(lengths)
    expected = answer_logps(model, *padded_of(batch))
    install_shared_attention(model)
    found = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], layout)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_masks_are_what_each_token_may_see(window):
    lengths, width = ((2, 3, 2), (1, 1, 4)), 8
    found = _pairs_mask(lengths, width, window, torch.device("cpu"))[:, 0]
    for pair, (prompt, chosen, rejected) in enumerate(lengths):
        part = ["p"] * prompt + ["c"] * chosen + ["r"] * rejected + ["pad"] * (width - prompt - chosen - rejected)
        position = [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        for i in range(prompt + chosen + rejected):
            for j in range(width):
                allowed = part[j] != "pad" and {part[i], part[j]} != {"c", "r"} and position[i] >= position[j]
                allowed = allowed and (window is None or position[i] - position[j] < window)
                assert bool(found[pair, i, j]) == allowed
        assert bool(found[pair].any(1).all())
    suffix = _suffix_mask(3, 4, window, torch.device("cpu"))
    for i in range(4):
        for j in range(7):
            behind = 3 + i - j
            assert bool(suffix[i, j]) == (behind >= 0 and (window is None or behind < window))


def test_the_layout_with_the_fewest_tokens_is_chosen():
    assert choose_layout(torch.tensor([[384, 64, 64]] * 4)) == "ragged"
    assert choose_layout(torch.tensor([[300, 100, 120], [20, 30, 10], [50, 200, 10]])) == "ragged"
    # Hardly anything to share, and no padding.
    assert choose_layout(torch.tensor([[4, 128, 128]] * 4)) == "padded"
    assert choose_layout(torch.tensor([[4, 128, 128]] * 4), shared=True) == "ragged"


def test_the_layout_on_a_gpu():
    """Rows of little work aren't worth another kernel, and rows of equal lengths need none of their own."""
    for lengths, expected in (
        ([[128, 40, 60]], "padded"),
        ([[4, 128, 128]] * 4, "padded"),
        ([[384, 64, 64]] * 4, "batched"),
        ([[400, 100, 120], [20, 30, 10], [50, 150, 10], [100, 20, 20]] * 4, "ragged"),
    ):
        assert choose_layout(torch.tensor(lengths), device="cuda") == expected
    assert choose_layout(torch.tensor([[128, 40, 60]]), shared=True, device="cuda") == "batched"


def test_rows_hold_every_token_once():
    batch = pairs()
    for layout in ("ragged", "batched"):
        rows = shared_rows(batch["input_ids"], batch["pair_lengths"], layout)
        assert rows.input_ids.shape == ((1, 71) if layout == "ragged" else (4, 29))
        assert rows.targets.tolist() == batch["input_ids"][batch["completion_mask"].bool()].tolist()
        assert rows.scored.sum(1).tolist() == batch["completion_mask"].sum(1).tolist()


def test_pairs_choose_by_themselves(monkeypatch):
    model, batch = make(CONFIGS["llama"]()), pairs()
    padded = pair_logps(model, batch, attn_layout="padded")
    assert model.config._attn_implementation == "sdpa"
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments[3])
        return shared_answer_logps(*arguments, **options)

    monkeypatch.setattr("pluralpref.likelihood.margins.shared_answer_logps", counted)
    for layout in ("auto", "shared"):
        found = pair_logps(model, batch, attn_layout=layout)
        torch.testing.assert_close(torch.cat(found), torch.cat(padded), rtol=1e-12, atol=1e-12)
    assert calls == ["ragged", "ragged"]
    # A batch of somebody's own, which may be padded on either side.
    del batch["pair_lengths"]
    pair_logps(model, batch)
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="needs a batch with pair_lengths"):
        pair_logps(model, batch, attn_layout="shared")
    with pytest.raises(ConfigError, match="attn_layout='flat': choose one of auto, padded, shared"):
        pair_logps(model, batch, attn_layout="flat")


def test_the_first_margin_is_exactly_zero():
    model, batch = make(CONFIGS["llama"]()).float(), pairs()
    reference = frozen_copy(model)
    margins = log_ratio_margins(pair_logps(model, batch), pair_logps(reference, batch))
    assert torch.equal(margins, torch.zeros(4, dtype=torch.float64))


def test_the_configuration_is_saved_as_it_was(tmp_path):
    model, batch = make(CONFIGS["llama"]()), pairs()
    model.save_pretrained(tmp_path / "before")
    pair_logps(model, batch, attn_layout="shared")
    assert model.config._attn_implementation == "pluralpref_shared_sdpa"
    model.save_pretrained(tmp_path / "after")
    saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after")]
    assert saved[0] == saved[1]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert again.config._attn_implementation == "sdpa"
    uninstall_shared_attention(model)
    assert model.config._attn_implementation == "sdpa"


class Mixing(torch.nn.Module):
    """A layer that lets every token see the one before it, whatever the mask says, as convolutions do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x + 0.3 * torch.nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :])


def with_mixing():
    model = make(CONFIGS["llama"]())
    model.model.layers[0].mlp = Mixing(model.model.layers[0].mlp)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: make(transformers.Gemma2Config(**SMALL, head_dim=8)), "its logits aren't its head's output"),
        (with_mixing, r"its log-probabilities differ by up to \d"),
        (lambda: make(CONFIGS["llama"](), attn_implementation="eager"), "attention function 'eager' is its own"),
    ],
)
def test_other_models_fall_back_and_say_why(model, reason, caplog):
    model, batch = model(), pairs()
    expected = torch.cat(pair_logps(model, batch, attn_layout="padded"))
    implementation = model.config._attn_implementation
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert torch.equal(torch.cat(pair_logps(model, batch)), expected)
    (message,) = [m for m in caplog.messages if "runs each prompt once for every answer" in m]
    assert message.startswith(type(model).__name__)
    with pytest.raises(ConfigError, match=f"attn_layout='shared' isn't possible with this model: .*{reason}"):
        pair_logps(model, batch, attn_layout="shared")
    assert model.config._attn_implementation == implementation


def test_attention_that_adds_something_unknown_is_not_guessed_at():
    model, batch = make(CONFIGS["llama"]()), pairs()
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, forward=forward, **k: forward(*a, softcap=30.0, **k)
    install_shared_attention(model)
    with pytest.raises(Exception, match="attends with softcap"):
        shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], "ragged")


def test_the_check_disturbs_nothing(caplog):
    """Not the modes of the modules, nor the generator, with dropout on."""
    model, batch = make(transformers.GPT2Config(**GPT2, attn_pdrop=0.5)).train(), pairs()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert shared_prefix.why_not_shared(model, *padded_of(batch), batch["pair_lengths"]) == ""
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not [record for record in caplog.records if record.name.startswith("pluralpref")]


def test_sixteen_bits_are_compared_more_loosely():
    model, batch = make(CONFIGS["llama"]()).to(torch.bfloat16), pairs()
    found, padded = (torch.cat(pair_logps(model, batch, attn_layout=name)) for name in ("shared", "padded"))
    tokens = batch["completion_mask"].sum(1)
    assert ((found - padded).abs() / tokens).max() < 0.05
    model = make(CONFIGS["llama"]()).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert shared_prefix.why_not_shared(model, *padded_of(batch), batch["pair_lengths"]) == ""


def test_copies_are_checked_by_themselves():
    model, batch = make(CONFIGS["llama"]()), pairs()
    pair_logps(model, batch)
    other = copy.deepcopy(model)
    assert other not in shared_prefix._REASONS
    assert torch.equal(torch.cat(pair_logps(other, batch)), torch.cat(pair_logps(model, batch)))


def test_adapters():
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    model, batch = peft.get_peft_model(make(CONFIGS["llama"]()), config, autocast_adapter_dtype=False), pairs()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    expected = value_and_gradients(model, answer_logps(model, *padded_of(batch)))
    found = value_and_gradients(model, torch.cat(pair_logps(model, batch, attn_layout="shared")))
    assert_same(found, expected)


def test_a_model_without_a_body_is_left_alone():
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(300, 8)
            self.output = torch.nn.Linear(8, 300)

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.output(self.embedding(input_ids).cumsum(1)))

    model, batch = Whole(), pairs()
    expected = torch.cat(pair_logps(model, batch, attn_layout="padded"))
    assert torch.equal(torch.cat(pair_logps(model, batch)), expected)
