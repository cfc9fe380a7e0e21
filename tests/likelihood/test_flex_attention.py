"""FlexAttention over rows of pairs against the segments; on CPUs, where torch runs it as dense attention."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pluralpref.data import PreferenceCollator
from pluralpref.likelihood import disable_dropout, flex_attention, pair_logps
from pluralpref.likelihood.flex_attention import ragged_attention
from pluralpref.likelihood.flex_mask import padded_width, row_mask
from pluralpref.likelihood.shared_attention import _segment_by_segment, install_shared_attention
from pluralpref.likelihood.shared_prefix import shared_answer_logps, why_not_shared

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral, window 5": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}
#: Of prompt, chosen and rejected answer: 159 tokens, more than one block of 128 and no multiple of it.
LENGTHS = ((5, 4, 9), (1, 1, 1), (60, 30, 20), (3, 6, 0), (2, 1, 16))
CPU = torch.device("cpu")


@pytest.fixture
def flex(monkeypatch):
    """FlexAttention as if the CPU were a GPU, in float64 as well; and what was asked of it."""
    seen = SimpleNamespace(calls=[], function=torch_flex.flex_attention)

    def counted(*arguments, **options):
        seen.calls.append(options)
        return seen.function(*arguments, **options)

    # Uncompiled, it can be differentiated on CPUs too.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_on_gpu", lambda _: True)
    monkeypatch.setattr(flex_attention, "_DTYPES", (torch.float64, *flex_attention._DTYPES))
    monkeypatch.setattr(flex_attention, "_compiled", lambda: counted)
    monkeypatch.setattr(flex_attention, "_CHECKED", set())
    monkeypatch.setattr(flex_attention, "_REFUSED", set())
    row_mask.cache_clear()
    return seen


@pytest.fixture
def unchecked(flex, monkeypatch):
    """For what isn't about the check, which takes a second."""
    monkeypatch.setattr(flex_attention, "_check", lambda *_: None)
    return flex


def segments(scaling=None):
    return partial(_segment_by_segment, partial(scaled_dot_product_attention, dropout_p=0.0, scale=scaling))


def draw(lengths, heads=4, key_heads=2, dimension=16, dtype=torch.float64, seed=0):
    """Query, key and value with the strides that models give them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(map(sum, lengths))
    return [
        torch.randn(1, tokens, count, dimension, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def attend(inputs, lengths, window=None, scaling=None, dropout=0.0):
    options = {"window": window, "scaling": scaling, "dropout": dropout, "segments": segments(scaling)}
    return ragged_attention(*inputs, lengths, **options)


def assert_same_attention(lengths, window=None, scaling=None, **sizes):
    inputs = draw(lengths, **sizes)
    outcomes = []
    for out in (attend(inputs, lengths, window, scaling), segments(scaling)(*inputs, lengths, window)):
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        outcomes.append([out, *torch.autograd.grad(out, inputs, weights)])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def make(name, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), **changes).double().eval()


def pairs(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {n: torch.randint(2, 300, (count,), generator=generator).tolist() for n, count in zip(names, row, strict=True)}
        for row in lengths
    ]
    return PreferenceCollator(0)(rows)


def padded_of(batch):
    return batch["input_ids"], batch["attention_mask"], batch["completion_mask"], batch["pair_lengths"]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_tokens_see_what_they_may(window):
    """Of their own pair: their own answer and the prompt, up to their position and no further back than the window."""
    lengths, width = ((2, 3, 2), (1, 1, 4), (3, 2, 0), (1, 1, 1)), 128
    pair, part, position = [], [], []
    for number, (prompt, chosen, rejected) in enumerate(lengths):
        pair += [number] * (prompt + chosen + rejected)
        part += ["p"] * prompt + ["c"] * chosen + ["r"] * rejected
        position += [*range(prompt + chosen), *range(prompt, prompt + rejected)]
    assert "".join(part) == "ppcccrr" + "pcrrrr" + "pppcc" + "pcr"
    mask = row_mask(lengths, width, window, CPU)
    found = torch_flex.create_mask(mask.mask_mod, None, None, width, width, device="cpu")[0, 0]
    for i in range(width):
        for j in range(width):
            if max(i, j) < len(pair):
                behind = position[i] - position[j]
                allowed = pair[i] == pair[j] and behind >= 0 and {part[i], part[j]} != {"c", "r"}
                allowed = allowed and (window is None or behind < window)
            else:
                allowed = i == j
            assert bool(found[i, j]) == allowed


@pytest.mark.parametrize("window", [None, 1, 130, 255])
@pytest.mark.parametrize("lengths", [LENGTHS, ((200, 120, 180),), ((100, 28, 128), (256, 1, 1), (1, 1, 1))])
def test_blocks_are_those_of_the_whole_mask(lengths, window):
    """A window of 255 leaves one token unseen of a block."""
    width = padded_width(sum(map(sum, lengths)))
    found = row_mask(lengths, width, window, CPU)
    expected = torch_flex.create_block_mask(found.mask_mod, None, None, width, width, device="cpu")
    assert found.shape == expected.shape == (1, 1, width, width)
    for number, index in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for name in (number, index, number.replace("kv", "q"), index.replace("kv", "q")):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_prompt_of_whole_blocks_is_seen_as_such():
    """Two blocks of prompt, one of chosen and one of rejected answer; nothing but the diagonal needs the mask."""
    mask = row_mask(((256, 128, 128),), 512, None, CPU)
    assert mask.kv_num_blocks.tolist() == [[[1, 1, 1, 1]]]
    assert mask.kv_indices[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 2, 2]]]
    assert mask.full_kv_indices[0, 0, 3, :2].tolist() == [0, 1]


def test_rows_have_few_lengths():
    assert [padded_width(n) for n in (1, 128, 129, 256, 257, 384, 385, 513, 768, 769, 1025)] == [
        *(128, 128, 256, 256, 384, 384, 512, 768, 768, 1024, 1536)
    ]
    widths = {n: padded_width(n) for n in range(1, 65537)}
    assert all(width % 128 == 0 and 0 <= width - n < max(128, n / 2) for n, width in widths.items())
    assert len(set(widths.values())) == 18


@pytest.mark.parametrize(
    ("lengths", "window", "heads", "key_heads"),
    [
        (LENGTHS, None, 4, 2),
        (LENGTHS, 1, 4, 2),
        (LENGTHS, 7, 2, 2),
        (LENGTHS, 40, 3, 1),
        (((1, 1, 1),), None, 2, 2),
        (((50, 40, 38),), None, 4, 2),
        (((50, 40, 39), (2, 0, 3)), 7, 4, 2),
    ],
)
def test_values_and_gradients_are_those_of_segments(unchecked, lengths, window, heads, key_heads):
    assert_same_attention(lengths, window, scaling=0.3, heads=heads, key_heads=key_heads)
    (call,) = unchecked.calls
    # Three groups aren't a power of two.
    assert call["scale"] == 0.3
    assert call["enable_gqa"] == ((heads, key_heads) == (4, 2))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(0, 10)), min_size=1, max_size=3),
    window=st.one_of(st.none(), st.integers(1, 35)),
)
def test_any_lengths(unchecked, lengths, window):
    assert_same_attention(tuple(lengths), window)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_models_give_the_same_numbers(flex, name, checkpointing, monkeypatch):
    model, batch = make(name), pairs()
    install_shared_attention(model)
    if checkpointing:
        # In this order: layers that checkpoint have to stay in training mode.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        disable_dropout(model.train())
    weights = torch.linspace(-1, 1, 2 * len(LENGTHS), dtype=torch.float64)

    def outcome():
        logps = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], "ragged")
        return logps, torch.autograd.grad((weights * logps).sum(), list(model.parameters()))

    found = outcome()
    # One mask for the check of the kernel, and one for both layers, run once or twice.
    assert row_mask.cache_info().misses == 2
    assert len(flex.calls) == 1 + 2 * (1 + checkpointing)
    monkeypatch.setattr(flex_attention, "_on_gpu", lambda _: False)
    expected = outcome()
    assert len(flex.calls) == 1 + 2 * (1 + checkpointing)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-7, atol=2e-6)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def broken(*_, **__):
    raise RuntimeError("Cannot find a working triton installation\nand what follows")


def one_token_too_far(query, key, value, block_mask, **options):
    inner, last = block_mask.mask_mod, key.shape[2] - 1

    def sees(b, h, q, kv):
        return inner(b, h, q, torch.clamp(kv - 1, min=0)) | (q == kv) | (q > last)

    mask = torch_flex.create_block_mask(sees, None, None, last + 1, last + 1, device="cpu")
    return torch_flex.flex_attention(query, key, value, block_mask=mask, **options)


def with_wrong_gradients(query, key, value, **options):
    return torch_flex.flex_attention(query, 0.5 * key + 0.5 * key.detach(), value, **options)


def without_numbers(*arguments, **options):
    return torch_flex.flex_attention(*arguments, **options) * float("nan")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (broken, r"RuntimeError: Cannot find a working triton installation\)"),
        (one_token_too_far, "InferenceError: its values differ from those of the segments by"),
        (with_wrong_gradients, "InferenceError: its gradients differ from those of the segments by"),
        (without_numbers, "InferenceError: its values differ from those of the segments by nan"),
    ],
)
def test_a_kernel_that_fails_is_not_used(flex, function, reason, caplog):
    """The model can read such rows all the same."""
    model, batch = make("llama"), pairs(LENGTHS[:3])
    expected = torch.cat(pair_logps(model, batch, attn_layout="padded"))
    flex.function = function
    assert why_not_shared(model, *padded_of(batch)) == ""
    for _ in range(2):
        found = torch.cat(pair_logps(model, batch, attn_layout="shared"))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.sum().backward()
    (record,) = [r for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("pluralpref")]
    message = record.getMessage()
    assert re.search(reason, message)
    assert message.startswith("FlexAttention can't be used on cpu for heads of dimension 16 in torch.float64 (")
    assert "segment by segment" in message
    # Tried once.
    assert len(flex.calls) == 1


def test_cpus_never_use_it(monkeypatch):
    monkeypatch.setattr(flex_attention, "_flex", broken)
    model, batch = make("llama").float(), pairs(LENGTHS[:3])
    pair_logps(model, batch, attn_layout="shared")


def test_what_it_can_not_do_is_left_to_segments(flex):
    attend(draw(LENGTHS), LENGTHS, dropout=0.5)
    attend(draw(LENGTHS, dimension=8), LENGTHS)
    with torch.inference_mode():
        attend(draw(LENGTHS), LENGTHS)
    assert not flex.calls
    attend(draw(LENGTHS), LENGTHS)
    assert len(flex.calls) == 2


def test_float64_on_a_gpu_is_left_to_segments(flex, monkeypatch):
    monkeypatch.setattr(flex_attention, "_DTYPES", (torch.float32,))
    attend(draw(LENGTHS), LENGTHS)
    assert not flex.calls


@pytest.mark.parametrize("trained", [(False, False, False), (True, False, False), (False, True, True)])
def test_gradients_go_where_they_are_asked_for(unchecked, trained):
    """A frozen model's output needs none; with adapters, only some of query, key and value do."""
    inputs = [x.detach().requires_grad_(which) for x, which in zip(draw(LENGTHS), trained, strict=True)]
    out, expected = attend(inputs, LENGTHS), segments()(*inputs, LENGTHS, None)
    assert out.requires_grad == expected.requires_grad == any(trained)
    with torch.no_grad():
        assert not attend(inputs, LENGTHS).requires_grad
    if any(trained):
        asked = [x for x in inputs if x.requires_grad]
        for one, other in zip(*(torch.autograd.grad(y.sin().sum(), asked) for y in (out, expected)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_autocast_reaches_it(flex):
    """As it does the segments: queries and keys come in float32 from rotation, values in 16 bits."""
    query, key, value = draw(LENGTHS, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = query, key, value.bfloat16()
        found, expected = attend(inputs, LENGTHS), segments()(*inputs, LENGTHS, None)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    # The check and the call.
    assert len(flex.calls) == 2


def test_the_check_disturbs_nothing(flex):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    inputs = draw(LENGTHS)
    out = checkpoint(lambda *x: attend([y * 1.0 for y in x], LENGTHS), *inputs, use_reentrant=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.autograd.grad(out.sum(), inputs)
    # The check, the forward pass, and once more for the backward pass.
    assert len(flex.calls) == 3


def test_few_kernels_are_compiled(flex):
    """One for each padded length, whatever the lengths, the window, what is trained, and with checkpointing."""
    counter = CompileCounterWithBackend("aot_eager")
    flex.function = torch.compile(torch_flex.flex_attention, backend=counter, dynamic=False, fullgraph=True)
    for lengths, window in ((LENGTHS, None), (((1, 1, 200), (4, 5, 6)), 3), (((100, 100, 56),), 1000)):
        assert_same_attention(lengths, window)
        inputs = draw(lengths)
        with torch.no_grad():
            attend(inputs, lengths)
        frozen = [inputs[0], *(x.detach() for x in inputs[1:])]
        checkpoint(lambda *x, own=lengths: attend(x, own), *frozen, use_reentrant=False).sum().backward()
    assert counter.frame_count == 1
    # Whose length is another.
    assert_same_attention(((20, 3, 4),))
    assert counter.frame_count == 2


def test_no_dense_attention_without_a_compiler(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    with pytest.raises(NotImplementedError, match="compile is switched off"):
        flex_attention._compiled()
