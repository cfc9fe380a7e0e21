"""What only a GPU can show: compiled kernels, 16-bit arithmetic on it, and that nothing is left on the wrong device."""

import logging
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import transformers
from datasets import Dataset
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pluralpref.data import PreferenceCollator
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.marginal import ClosedForm, MonteCarlo, Quadrature, log_marginal, log_marginal_panel
from pluralpref.likelihood import disable_dropout, log_ratio_margins, pair_logps
from pluralpref.likelihood.batches import to_device
from pluralpref.likelihood.flex_attention import ragged_attention
from pluralpref.likelihood.linear_logps import linear_logps
from pluralpref.likelihood.pair_layout import Layout
from pluralpref.likelihood.shared_attention import _segment_by_segment, install_shared_attention
from pluralpref.likelihood.shared_prefix import shared_answer_logps, why_not_shared
from pluralpref.likelihood.token_logps import token_logps
from pluralpref.models import (
    FixedStrength,
    GammaStrength,
    GroupStrength,
    InverseGammaStrength,
    LatentClassStrength,
    LogNormalStrength,
    MixtureStrength,
    OpposedStrength,
    TwoSiteModel,
    ZeroInflatedStrength,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

GPU = torch.device("cuda")
#: Of prompt, chosen and rejected answer: shorter and longer than a block of 128, and one without a rejected answer.
LENGTHS = ((5, 4, 9), (1, 1, 1), (260, 130, 20), (3, 6, 0), (2, 1, 160))
STRENGTHS = {
    "fixed": partial(FixedStrength, 0.5),
    "lognormal": partial(LogNormalStrength, mean=0.5, cv=0.5),
    "gamma": partial(GammaStrength, mean=0.5, cv=0.5),
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 300, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral, window 50": lambda: transformers.MistralConfig(**SIZES, sliding_window=50),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=32),
    "three groups": lambda: transformers.LlamaConfig(**{**SIZES, "num_attention_heads": 6, "hidden_size": 192}),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**NEOX),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}


def segments(scaling=None):
    return partial(_segment_by_segment, partial(scaled_dot_product_attention, dropout_p=0.0, scale=scaling))


def draw(heads, key_heads, dimension, dtype, lengths=LENGTHS):
    """Query, key and value with the strides that models give them."""
    generator = torch.Generator(GPU).manual_seed(0)
    tokens = sum(map(sum, lengths))
    return [
        torch.randn(1, tokens, count, dimension, generator=generator, device=GPU)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def outcome(out, inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape)
    return [out, *torch.autograd.grad(out, inputs, weights.to(out.dtype))]


def apart(one, other):
    return float((one.detach().double() - other.detach()).norm() / other.detach().norm())


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("pluralpref")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("heads", "key_heads", "dimension", "window"),
    [(4, 4, 64, None), (9, 3, 64, None), (8, 2, 128, 100), (2, 2, 16, None), (4, 1, 80, None), (4, 2, 256, 300)],
)
def test_kernels_agree_with_float64(heads, key_heads, dimension, window, dtype, caplog):
    inputs = draw(heads, key_heads, dimension, dtype)
    found = ragged_attention(*inputs, LENGTHS, window=window, scaling=None, dropout=0.0, segments=segments())
    assert not warnings_of(caplog)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = outcome(segments()(*exact, LENGTHS, window), exact)
    # Rounding of the inputs of each product: to 24 bits or, on the tensor cores of a GPU, to 11 in float32; to 8 or 11.
    relative = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    for one, other in zip(outcome(found, inputs), expected, strict=True):
        assert apart(one, other) < relative


def test_a_kernel_is_the_one_that_ran():
    def never(*arguments):
        raise AssertionError("attended to segment by segment")

    inputs = draw(4, 4, 64, torch.bfloat16)
    options = {"window": None, "scaling": None, "dropout": 0.0}
    ragged_attention(*inputs, LENGTHS, **options, segments=segments())
    again = ragged_attention(*inputs, LENGTHS, **options, segments=never)
    assert again.requires_grad


def test_float64_and_small_heads_are_left_to_segments(caplog):
    for dimension, dtype in ((64, torch.float64), (8, torch.float32)):
        inputs = draw(2, 2, dimension, dtype)
        found = ragged_attention(*inputs, LENGTHS, window=None, scaling=None, dropout=0.0, segments=segments())
        torch.testing.assert_close(found, segments()(*inputs, LENGTHS, None), rtol=0, atol=0)
    assert not warnings_of(caplog)


def make(name, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def pairs(lengths=LENGTHS[:3]):
    generator = torch.Generator().manual_seed(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {n: torch.randint(2, 300, (count,), generator=generator).tolist() for n, count in zip(names, row, strict=True)}
        for row in lengths
    ]
    return PreferenceCollator(0)(rows)


def scored(model, batch, layout: Layout):
    logps = shared_answer_logps(model, batch["input_ids"], batch["pair_lengths"], layout)
    weights = torch.linspace(-1, 1, len(logps), dtype=torch.float64, device=logps.device)
    return logps, torch.autograd.grad((weights * logps).sum(), list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("layout", ["ragged", "batched"])
@pytest.mark.parametrize("name", CONFIGS)
def test_models_agree_with_float64_on_a_cpu(name, layout, caplog):
    exact, batch = make(name).double(), pairs()
    logps = torch.cat(pair_logps(exact, batch, attn_layout="padded"))
    weights = torch.linspace(-1, 1, len(logps), dtype=torch.float64)
    gradients = torch.autograd.grad((weights * logps).sum(), list(exact.parameters()), allow_unused=True)
    model, there = make(name).to(GPU), to_device(batch, GPU)
    padded = there["input_ids"], there["attention_mask"], there["completion_mask"], there["pair_lengths"]
    assert why_not_shared(model, *padded) == ""
    found = scored(model, there, layout)
    assert not warnings_of(caplog)
    torch.testing.assert_close(found[0].cpu(), logps, rtol=1e-5, atol=2e-3)
    for one, other in zip(found[1], gradients, strict=True):
        if other is not None and float(other.norm()) > 1e-9:
            assert apart(one.cpu(), other) < 5e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_to_bfloat16(checkpointing, caplog):
    model, batch = make("llama").to(GPU), to_device(pairs(), GPU)
    install_shared_attention(model)
    expected = scored(model, batch, "ragged")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        disable_dropout(model.train())
    with torch.autocast("cuda", torch.bfloat16):
        found = scored(model, batch, "ragged")
    assert not warnings_of(caplog)
    torch.testing.assert_close(found[0], expected[0], rtol=5e-3, atol=0.3)
    whole = [torch.cat([x.flatten() for x in one]) for one in (found[1], expected[1])]
    assert apart(*whole) < 0.05


def test_checkpointed_attention_has_the_same_gradients():
    inputs = draw(4, 2, 64, torch.bfloat16)

    def attend(*x):
        return ragged_attention(*x, LENGTHS, window=None, scaling=None, dropout=0.0, segments=segments())

    for one, other in zip(
        outcome(attend(*inputs), inputs), outcome(checkpoint(attend, *inputs, use_reentrant=False), inputs), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attn_layout", ["padded", "shared"])
def test_margins_of_equal_weights_are_exactly_0(attn_layout, dtype):
    policy, reference = make("llama").to(GPU), make("llama").to(GPU).requires_grad_(False)
    batch = to_device(pairs(), GPU)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        trained = pair_logps(policy, batch, attn_layout=attn_layout)
        with torch.no_grad():
            fixed = pair_logps(reference, batch, attn_layout=attn_layout)
    assert log_ratio_margins(trained, fixed).tolist() == [0.0] * 3


@pytest.mark.parametrize("budget", [0, 2**40])
@pytest.mark.parametrize("trained", [True, False])
def test_head_by_blocks(trained, budget, monkeypatch):
    """A vocabulary of several blocks, against log-softmax in float64."""
    monkeypatch.setattr("pluralpref.likelihood.linear_logps._block_bytes", lambda _: 2**20)
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 5003, device=GPU).requires_grad_(trained)
    hidden = torch.randn(200, 64, device=GPU, requires_grad=True)
    targets = torch.randint(0, 5003, (200,), device=GPU)
    leaves = [hidden, head.weight, head.bias] if trained else [hidden]
    weights = torch.linspace(-1, 1, 200, device=GPU)
    found = linear_logps(head, hidden, targets, budget)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head.weight, head.bias)]
    expected = token_logps(torch.nn.functional.linear(*exact), targets)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    expected = expected.double()
    wanted = torch.autograd.grad((weights * expected).sum(), exact[: len(leaves)])
    for one, other in zip(torch.autograd.grad((weights * found).sum(), leaves), wanted, strict=True):
        assert apart(one, other) < 1e-3


@pytest.mark.parametrize("method", [MonteCarlo(16), Quadrature(), ClosedForm()], ids=lambda m: type(m).__name__)
def test_marginals_are_those_of_a_cpu(method):
    margins = torch.tensor([-300.0, -5.0, -0.1, 0.0, 0.1, 5.0, 300.0], dtype=torch.float64)
    shape = torch.tensor(3.0, dtype=torch.float64)
    family = dist.Gamma if isinstance(method, ClosedForm) else dist.LogNormal
    outcomes = []
    for device in (torch.device("cpu"), GPU):
        first = shape.to(device).requires_grad_()
        h = margins.to(device).requires_grad_()
        law = family(first, torch.ones_like(first))
        value = log_marginal(law, h, method)
        outcomes.append([x.cpu() for x in (value.detach(), *torch.autograd.grad(value.sum(), [first, h]))])
    if isinstance(method, MonteCarlo):
        assert all(bool(torch.isfinite(x).all()) for x in outcomes[1])
        return
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_panels_are_those_of_a_cpu():
    margins = torch.linspace(-3, 3, 12, dtype=torch.float64)
    people = torch.arange(12) % 3
    values = [
        log_marginal_panel(
            dist.LogNormal(torch.zeros((), device=d, dtype=torch.float64), torch.ones((), device=d, dtype=torch.float64)),
            margins.to(d), people.to(d), 3,
        ).cpu()
        for d in ("cpu", "cuda")
    ]  # fmt: skip
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-12)


FAMILIES = {
    "gamma": GammaStrength,
    "lognormal": LogNormalStrength,
    "inverse_gamma": InverseGammaStrength,
    "latent_class": LatentClassStrength,
    "mixture": lambda: MixtureStrength(
        [GammaStrength(0.2, 0.5), LogNormalStrength()], shares=dist.Dirichlet(torch.ones(2))
    ),
    "zero_inflated": ZeroInflatedStrength,
    "opposed": OpposedStrength,
    "group": lambda: GroupStrength(3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_laws_are_those_of_a_cpu(name):
    """Priors move with their module, and quantiles are worked out where the law is."""
    expected, found = FAMILIES[name](), FAMILIES[name]().to(GPU)
    assert {prior.mean.device.type for prior in found.priors().values()} <= {"cuda"}
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    state = torch.cuda.get_rng_state()
    quantiles = found.quantile(levels)
    assert quantiles.device.type == "cuda"
    torch.testing.assert_close(quantiles.cpu(), expected.quantile(levels), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.mean.cpu(), expected.mean)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_users_model_is_looked_at_on_its_device():
    def model(margins, preferred=None):
        loc = pyro.param("loc", torch.tensor(-2.0))
        with pyro.plate("pairs", len(margins)):
            beta = pyro.sample("beta", dist.LogNormal(loc, 1.0))
            pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    strength = TwoSiteModel(model).to(GPU)
    state = torch.cuda.get_rng_state()
    assert strength.law().mean.device.type == "cuda"
    assert float(strength.quantile(0.5)) == pytest.approx(torch.tensor(-2.0).exp().item(), rel=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def rows(count=24):
    made = []
    for i in range(count):
        answers = [" good" + "!" * (i % 4), f" bad {i}"]
        chosen, rejected = answers if i % 3 else answers[::-1]
        made.append({"prompt": f"what is {'so ' * (i % 5)}{i}", "chosen": chosen, "rejected": rejected})
    return [{**row, "annotator": f"person {i % 4}"} for i, row in enumerate(made)]


@pytest.fixture
def train(tiny_llama, tiny_tokenizer, short_training, tmp_path):
    def run(strength, *, folder="run", resume=None, policy=None, **options):
        settings = {
            **short_training,
            "output_dir": str(tmp_path / folder),
            "use_cpu": False,
            "optim": "sgd",
            "learning_rate": 1e-2,
        }
        policy = tiny_llama(0, hidden_size=128) if policy is None else policy
        trainer = MixDPOTrainer(
            policy,
            strength=strength,
            args=MixDPOConfig(**{**settings, **options}),
            train_dataset=Dataset.from_list(rows()),
            eval_dataset=Dataset.from_list(rows(7)),
            processing_class=tiny_tokenizer,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def history(trainer):
    return [one for one in trainer.state.log_history if "loss" in one]


@pytest.mark.parametrize("panel", [False, True])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_training_is_that_of_a_cpu(train, strength, panel):
    if panel and strength == "fixed":
        pytest.skip("one strength for everybody")
    expected = train(STRENGTHS[strength](), use_cpu=True, panel=panel)
    found = train(STRENGTHS[strength](), panel=panel)
    assert found.model.device.type == "cuda"
    for one, other in zip(history(found), history(expected), strict=True):
        for name in ("loss", "margins", "logps/chosen", "beta/mean"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-4), name
    assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"bf16": True, "gradient_checkpointing": True},
        {"bf16": True, "precompute_ref_log_probs": True},
        {"bf16": True, "max_tokens_per_batch": 100},
        {"bf16": True, "use_liger_kernel": True},
    ],
    ids=str,
)
def test_other_ways_of_training(train, options):
    if "use_liger_kernel" in options:
        pytest.importorskip("liger_kernel")
    trainer = train(LogNormalStrength(mean=0.5, cv=0.5), **options)
    first, *_, last = history(trainer)
    # Numbers from batches of other sizes differ by rounding to 16 bits.
    assert abs(first["margins"]) <= (0.05 if "precompute_ref_log_probs" in options else 0)
    expected, *_, final = history(train(LogNormalStrength(mean=0.5, cv=0.5), folder="float32"))
    assert first["logps/chosen"] == pytest.approx(expected["logps/chosen"], rel=0.01)
    assert last["loss"] == pytest.approx(final["loss"], abs=0.02)
    assert last["margins"] == pytest.approx(final["margins"], abs=0.1)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("options", [{"fp16": True}, {"num_samples": 16}], ids=str)
def test_ways_that_learn_otherwise(train, options):
    """Draws are other ones; in float16 steps are left out until the gradients' scale is small enough."""
    expected = train(LogNormalStrength(mean=0.5, cv=0.5), max_steps=18, folder="float32")
    trainer = train(LogNormalStrength(mean=0.5, cv=0.5), **options, max_steps=18)
    first, *_, last = history(trainer)
    assert first["margins"] == 0.0
    assert abs(last["margins"]) > 0.1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], abs=0.1)


def test_16_bits_are_used(train):
    found = {}
    for bf16 in (False, True):
        found[bf16] = history(train(FixedStrength(0.5), bf16=bf16))[0]["logps/chosen"]
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=0.01)


def test_adapters(train, tiny_llama):
    peft = pytest.importorskip("peft")
    policy = peft.get_peft_model(
        tiny_llama(0, hidden_size=128), peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    trainer = train(GammaStrength(mean=0.5, cv=0.5), policy=policy, bf16=True, learning_rate=1.0)
    first, *_, last = history(trainer)
    assert first["margins"] == 0.0
    assert abs(last["margins"]) > 1e-3


def test_resumed_training_goes_on(train):
    """Random draws included, up to rounding."""
    options = {
        "num_samples": 16,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    }
    whole = train(LogNormalStrength(mean=0.5, cv=0.5), **options, folder="whole")
    cut = train(LogNormalStrength(mean=0.5, cv=0.5), **options, folder="cut", resume=checkpoint_of(whole, 2))
    for one, other in zip(history(cut)[-2:], history(whole)[-2:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["beta/mean"] == pytest.approx(other["beta/mean"], rel=1e-4)


def checkpoint_of(trainer, step):
    return f"{trainer.args.output_dir}/checkpoint-{step}"


def test_evaluation_leaves_the_generators_as_they_were(train):
    trainer = train(LogNormalStrength(mean=0.5, cv=0.5), num_samples=16)
    torch.manual_seed(5)
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = trainer.evaluate()["eval_loss"]
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], torch.cuda.get_rng_state())
    torch.manual_seed(6)
    assert trainer.evaluate()["eval_loss"] == first
