"""The trainer: losses and gradients against formulas, metrics, refusals."""

import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from pyro.nn import PyroParam
from safetensors.torch import load_file
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pluralpref.data import PreferenceCollator, padding_token, tokenize_preferences
from pluralpref.data.collate import POSITION
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.evaluated_pairs import EvaluatedPairs
from pluralpref.likelihood import PairLogps
from pluralpref.models import FixedStrength, GammaStrength, LogNormalStrength, StrengthModel

NUM_PAIRS = 16


class WeibullStrength(StrengthModel):
    """A family that the package doesn't know."""

    def __init__(self, concentration=2.0, scale=0.5):
        super().__init__()
        self.concentration = PyroParam(torch.tensor(concentration), constraints.positive)
        self.scale = PyroParam(torch.tensor(scale), constraints.positive)

    def forward(self, context=None):
        return dist.Weibull(self.scale, self.concentration)


def two_sites(margins, preferred=None):
    """A user's Pyro function."""
    loc = pyro.param("loc", torch.tensor(-1.0))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("pairs", len(margins)):
        beta = pyro.sample("beta", dist.LogNormal(loc, scale))
        pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)


def _pairs(count=NUM_PAIRS):
    return Dataset.from_list(
        [
            {"prompt": f"q{i}", "chosen": " good" + "!" * (i % 4), "rejected": f" bad {i}", "topic": "ab"[i % 2]}
            for i in range(count)
        ]
    )


def _mixed_pairs(count):
    """Pairs of which every third has its answers exchanged, so that a policy can't be right about all."""
    rows = list(_pairs(count))
    for row in rows[::3]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return Dataset.from_list(rows)


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training):
    """Trainers of the same small model; options go to the config."""

    def build(strength=None, *, data=None, eval_data=None, policy=None, trainer=None, **options):
        return MixDPOTrainer(
            tiny_llama(0) if policy is None else policy,
            strength=strength,
            args=MixDPOConfig(**{**short_training, **options}),
            train_dataset=_pairs() if data is None else data,
            eval_dataset=eval_data,
            processing_class=tiny_tokenizer,
            **(trainer or {}),
        )

    return build


def _losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def _parameters(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def _own_margins(policy, reference, batch):
    """Differences of log-ratios, written out with log_softmax over whole rows."""

    def sums(model):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        picked = output.double().log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (picked * batch["completion_mask"][:, 1:]).sum(1).view(2, -1)

    with torch.no_grad():
        ref = sums(reference)
    ratio = sums(policy) - ref
    return ratio[0] - ratio[1]


# -- loss and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [FixedStrength(0.1), LogNormalStrength(0.1, 0.5), GammaStrength(0.1, 0.5)])
def test_first_step_has_margin_zero_and_loss_log_two(make, strength):
    trainer = make(strength, max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["margins"] == 0
    assert first["rewards/margins"] == 0
    assert first["rewards/ties"] == 1
    assert first["rewards/accuracies"] == 0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_fixed_strength_is_dpo(make, tiny_llama, tiny_tokenizer):
    beta = 0.3
    policy, reference = tiny_llama(0).eval(), tiny_llama(1).eval()
    trainer = make(FixedStrength(beta), policy=policy, trainer={"ref_model": reference})
    encoded, _ = tokenize_preferences(_pairs(5), tiny_tokenizer)
    batch = PreferenceCollator(padding_token(tiny_tokenizer))(list(encoded))
    loss = trainer.compute_loss(policy, batch)
    loss.backward()
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    margins = _own_margins(policy, reference, batch)
    assert margins.abs().min() > 1e-3
    expected = -logsigmoid(beta * margins).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for mine, parameter in zip(got, policy.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-5)


def test_fixed_strength_follows_a_hand_written_dpo_loop(make, tiny_llama, tiny_tokenizer):
    beta, lr, steps = 0.5, 0.1, 3
    trainer = make(
        FixedStrength(beta),
        data=_pairs(4),
        max_steps=steps,
        optim="sgd",
        learning_rate=lr,
        max_grad_norm=0.0,
        weight_decay=0.0,
    )
    trainer.train()
    policy, reference = tiny_llama(0), tiny_llama(0)
    encoded, _ = tokenize_preferences(_pairs(4), tiny_tokenizer)
    batch = PreferenceCollator(padding_token(tiny_tokenizer))(list(encoded))
    expected = []
    for _ in range(steps):  # one batch holds all pairs, so their order doesn't matter
        loss = -logsigmoid(beta * _own_margins(policy, reference, batch)).mean()
        policy.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= lr * parameter.grad
        expected.append(loss.item())
    assert _losses(trainer) == pytest.approx(expected, abs=1e-6)
    assert expected[-1] < expected[0] - 1e-3
    torch.testing.assert_close(_parameters(trainer.model), _parameters(policy), atol=1e-6, rtol=0)


def test_weights_and_soft_labels(make, tiny_llama, tiny_tokenizer):
    beta = 0.3
    policy, reference = tiny_llama(0), tiny_llama(1)
    weight, preferred = [2.0, 0.0, 1.0, 0.5], [1.0, 0.3, 0.25, 0.0]
    data = _pairs(4).add_column("weight", weight).add_column("preferred", preferred)
    trainer = make(FixedStrength(beta), data=data, policy=policy, trainer={"ref_model": reference})
    batch = trainer.data_collator(list(trainer.train_dataset))
    h = _own_margins(policy, reference, batch).detach()
    w, y = torch.tensor(weight, dtype=torch.float64), torch.tensor(preferred, dtype=torch.float64)
    expected = -(w * (y * logsigmoid(beta * h) + (1 - y) * logsigmoid(-beta * h))).sum() / w.sum()
    assert trainer.compute_loss(policy, batch).item() == pytest.approx(expected.item(), abs=1e-6)


def test_weights_that_are_all_zero_are_refused(make):
    with pytest.raises(DataError, match="weight is 0 in every training row"):
        make(FixedStrength(0.3), data=_pairs(4).add_column("weight", [0.0] * 4))


def test_accumulation_changes_nothing(make):
    data = _pairs().add_column("weight", [1.0 + i % 3 for i in range(NUM_PAIRS)])
    ends = []
    for size, accumulation in ((2, 4), (8, 1)):
        trainer = make(
            GammaStrength(0.5, 0.5),
            data=data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        ends.append((_parameters(trainer.model), _parameters(trainer.strength), _losses(trainer)))
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ends[0][1], ends[1][1], atol=1e-5, rtol=0)
    assert ends[0][2] == pytest.approx(ends[1][2], abs=1e-5)


# -- the strength is learned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strength", "options"),
    [
        (lambda: LogNormalStrength(0.5, 0.5), {"num_samples": 16}),
        (lambda: LogNormalStrength(0.5, 0.5), {}),
        (lambda: GammaStrength(0.5, 0.5), {}),
        (lambda: FixedStrength(0.5, learned=True), {}),
        (WeibullStrength, {}),
        (lambda: two_sites, {}),
    ],
    ids=["lognormal-16", "lognormal", "gamma", "fixed", "weibull", "function"],
)
def test_strength_parameters_move_and_are_saved(make, tmp_path, strength, options):
    store = list(pyro.get_param_store().keys())
    trainer = make(strength(), save_strategy="steps", save_steps=4, learning_rate=1e-2, **options)
    start = {name: value.clone() for name, value in trainer.strength.state_dict().items()}
    assert start
    trainer.train()
    for name, value in trainer.strength.state_dict().items():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, start[name]), name
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "strength.safetensors")
    assert saved.keys() == start.keys()
    for name, value in trainer.strength.state_dict().items():
        assert torch.equal(saved[name], value)
    assert _losses(trainer)[-1] < _losses(trainer)[0]
    if isinstance(trainer.strength, StrengthModel):
        loaded = type(trainer.strength).from_pretrained(tmp_path / "run" / "checkpoint-4")
        assert loaded.mean.item() == pytest.approx(trainer.strength.mean.item(), rel=1e-6)
    assert list(pyro.get_param_store().keys()) == store


def test_a_constant_strength_stays(make):
    trainer = make(FixedStrength(0.1))
    trainer.train()
    assert trainer.strength.mean.item() == pytest.approx(0.1, abs=1e-12)
    assert len(trainer.optimizer.param_groups) == 2  # the policy's two alone


def test_priors_train_with_a_guide(make, tmp_path):
    strength = LogNormalStrength(dist.LogNormal(-2.0, 1.0), dist.HalfNormal(1.0))
    trainer = make(strength, save_strategy="steps", save_steps=4)
    start = {name: value.clone() for name, value in trainer.guide.state_dict().items()}
    trainer.train()
    after = trainer.guide.state_dict()
    assert len(after) == 4  # location and scale for each of the two parameters
    assert all(not torch.equal(after[name], value) for name, value in start.items())
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "strength_guide.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in after.items())
    assert trainer.state.log_history[0]["beta/mean"] > 0


def test_strength_has_a_group_of_its_own(make):
    trainer = make(GammaStrength(0.1, 0.5), weight_decay=0.1, strength_learning_rate=0.02, learning_rate=1e-4)
    trainer.create_optimizer()
    ours = {id(p) for p in trainer.strength.parameters()}
    groups = trainer.optimizer.param_groups
    (group,) = [g for g in groups if ours & {id(p) for p in g["params"]}]
    assert {id(p) for p in group["params"]} == ours
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.0)
    assert {g["lr"] for g in groups if g is not group} == {1e-4}
    assert {g["weight_decay"] for g in groups if g is not group} == {0.0, 0.1}


def test_strength_gradients_do_not_pile_up(make):
    """One batch of all pairs: plain gradient steps on the strength, each from that step's gradient alone."""
    trainer = make(FixedStrength(0.5, learned=True), data=_pairs(4), optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
    seen = []
    original = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        loss, outputs = original(model, inputs, return_outputs=True, **kwargs)
        beta = trainer.strength.mean.item()
        h = outputs["margins"].detach()
        # beta is exp of what is learned, hence the factor beta.
        gradient = -(h * torch.sigmoid(-beta * h)).mean().item() * beta
        seen.append((math.log(beta), gradient))
        return loss

    trainer.compute_loss = spy
    trainer.train()
    for (before, gradient), (after, _) in itertools.pairwise(seen):
        assert after - before == pytest.approx(-0.05 * gradient, abs=1e-9)
    assert abs(seen[-1][1]) > 1e-4


def test_pyro_param_store_is_left_alone(make):
    pyro.clear_param_store()
    pyro.param("loc", torch.tensor(7.0))
    try:
        for strength in (two_sites, GammaStrength(0.1, 0.5), LogNormalStrength(dist.LogNormal(-2.0, 1.0), 0.5)):
            trainer = make(strength, max_steps=1)
            trainer.train()
            assert list(pyro.get_param_store().keys()) == ["loc"]
            assert pyro.param("loc").item() == 7.0
    finally:
        pyro.clear_param_store()


# -- evaluation and metrics ----------------------------------------------------------------------------------------

METRICS = {
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies", "ties")),
    "logps/chosen",
    "logps/rejected",
    "margins",
    *(f"beta/{name}" for name in ("mean", "std", "cv", "q05", "q50", "q95")),
}


def test_evaluation_does_not_depend_on_the_batch_size(make, tiny_llama):
    data = _mixed_pairs(5).add_column("weight", [1.0, 2.0, 0.5, 1.0, 3.0])
    results = []
    for size in (1, 2, 3, 5):
        trainer = make(
            LogNormalStrength(0.5, 0.5),
            eval_data=data,
            trainer={"ref_model": tiny_llama(1)},
            per_device_eval_batch_size=size,
            group_columns=["topic"],
        )
        values = trainer.evaluate()
        wanted = METRICS | {"loss"} | {f"group/topic={name}/rewards/accuracies" for name in "ab"}
        results.append({f"eval_{name}": values[f"eval_{name}"] for name in wanted})
    assert 0 < results[0]["eval_rewards/accuracies"] < 1
    assert abs(results[0]["eval_margins"]) > 1e-3
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-6)


def test_evaluation_metrics_are_the_formulas(make, tiny_llama):
    policy, reference = tiny_llama(0), tiny_llama(1)
    trainer = make(FixedStrength(0.3), policy=policy, eval_data=_mixed_pairs(5), trainer={"ref_model": reference})
    values = trainer.evaluate()
    h = _own_margins(policy, reference, trainer.data_collator(list(trainer.eval_dataset))).detach()
    assert values["eval_margins"] == pytest.approx(h.mean().item(), abs=1e-5)
    assert values["eval_rewards/margins"] == pytest.approx(0.3 * h.mean().item(), abs=1e-5)
    assert values["eval_rewards/accuracies"] == pytest.approx((h > 0).double().mean().item())
    assert values["eval_loss"] == pytest.approx(-logsigmoid(0.3 * h).mean().item(), abs=1e-6)
    assert values["eval_beta/mean"] == pytest.approx(0.3)
    assert values["eval_beta/cv"] == 0
    difference = values["eval_rewards/chosen"] - values["eval_rewards/rejected"]
    assert difference == pytest.approx(values["eval_rewards/margins"], abs=1e-6)


@pytest.mark.parametrize("num_samples", [None, 16])
def test_evaluation_changes_nothing(make, num_samples):
    trainer = make(LogNormalStrength(0.5, 0.5), eval_data=_pairs(5), num_samples=num_samples)
    trainer.train()
    strength, policy = _parameters(trainer.strength), _parameters(trainer.model)
    state = torch.get_rng_state()
    first = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(_parameters(trainer.strength), strength)
    assert torch.equal(_parameters(trainer.model), policy)
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]


def test_evaluating_between_steps_leaves_training_as_it_was(make):
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make(LogNormalStrength(0.5, 0.5), eval_data=_pairs(5), num_samples=16, **options)
        trainer.train()
        runs.append((_losses(trainer), _parameters(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_logs_and_metrics_file(make, tmp_path):
    trainer = make(
        GammaStrength(0.5, 0.5),
        data=_pairs(8).add_column("extra", list("abcdefgh")),
        eval_data=_pairs(5),
        eval_strategy="steps",
        eval_steps=2,
        group_columns=["topic"],
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == trainer.state.log_history
    train = [line for line in lines if "loss" in line]
    evaluation = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    assert [line["step"] for line in evaluation] == [2, 4]
    groups = {f"group/topic={name}/rewards/accuracies" for name in "ab"}
    assert train[0].keys() >= METRICS
    assert {f"eval_{name}" for name in METRICS | groups} <= evaluation[0].keys()
    assert train[0]["beta/mean"] > 0
    assert train[-1]["beta/q05"] < train[-1]["beta/q50"] < train[-1]["beta/q95"]
    assert train[-1]["beta/cv"] == pytest.approx(train[-1]["beta/std"] / train[-1]["beta/mean"])


def test_group_accuracies(make, tiny_llama):
    policy, reference = tiny_llama(0), tiny_llama(1)
    trainer = make(policy=policy, eval_data=_mixed_pairs(9), trainer={"ref_model": reference}, group_columns=["topic"])
    values = trainer.evaluate()
    h = _own_margins(policy, reference, trainer.data_collator(list(trainer.eval_dataset)))
    assert 0 < (h > 0).double().mean() < 1
    for i, name in enumerate("ab"):
        assert values[f"eval_group/topic={name}/rewards/accuracies"] == pytest.approx(
            (h[i::2] > 0).double().mean().item()
        )


def test_a_fresh_run_starts_the_metrics_file_anew(make, tmp_path):
    for _ in range(2):
        make(GammaStrength(0.5, 0.5), max_steps=2).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


def test_skipped_rows_are_in_the_logs(make):
    data = Dataset.from_list([*_pairs(4), {"prompt": "q", "chosen": "x", "rejected": "x", "topic": "a"}])
    trainer = make(data=data, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["skipped/tie"] == 1
    assert trainer.row_reports["train"].kept == 4


def test_several_evaluation_sets(make):
    trainer = make(eval_data={"one": _pairs(3), "two": _pairs(5)})
    assert {"eval_one_loss", "eval_two_loss"} <= trainer.evaluate().keys()
    assert "other_margins" in trainer.evaluate(_pairs(2), metric_key_prefix="other")


def test_evaluation_counts_every_pair_also_where_training_drops_the_last(make):
    whole = make(LogNormalStrength(0.5, 0.5), eval_data=_mixed_pairs(5))
    some = make(
        LogNormalStrength(0.5, 0.5),
        eval_data=_mixed_pairs(5),
        dataloader_drop_last=True,
        per_device_eval_batch_size=3,
    )
    few = make(LogNormalStrength(0.5, 0.5), eval_data=_mixed_pairs(5), dataloader_drop_last=True)
    expected = whole.evaluate()
    for trainer in (some, few):  # of 5 pairs the last 2, or all, would be less than a batch
        found = trainer.evaluate()
        assert found["eval_logps/chosen"] == pytest.approx(expected["eval_logps/chosen"], abs=1e-5)
        assert len(trainer.predict(trainer.eval_dataset).predictions) == 5
        assert trainer.args.dataloader_drop_last
    assert len(few.get_train_dataloader()) == NUM_PAIRS // 4


def test_several_processes_count_each_pair_once_whatever_its_row(make):
    trainer = make(LogNormalStrength(0.5, 0.5), eval_data=_mixed_pairs(5), per_device_eval_batch_size=2)
    repeated = concatenate_datasets([trainer.eval_dataset, trainer.eval_dataset.select([1, 3])])
    batches = list(trainer.get_eval_dataloader(repeated))
    pairs = EvaluatedPairs()
    for batch in [*batches, batches[0]]:  # as to a process that needs one more
        logps = PairLogps(batch["weight"], batch["weight"])
        pairs.add(logps, logps, batch["row"].double(), batch)
    assert pairs.merge(lambda parts: parts)["tensors"]["margins"].tolist() == [0, 1, 2, 3, 4, 1, 3]
    without_rows = list(trainer.get_eval_dataloader(repeated.remove_columns("row")))
    assert torch.cat([batch[POSITION] for batch in without_rows]).tolist() == list(range(7))


# -- the reference -------------------------------------------------------------------------------------------------


def test_precomputed_reference_gives_the_same_losses(make, tiny_llama):
    runs = []
    for precompute in (False, True):
        trainer = make(
            GammaStrength(0.5, 0.5),
            eval_data=_pairs(5),
            trainer={"ref_model": tiny_llama(1)},
            precompute_ref_log_probs=precompute,
        )
        assert (trainer.ref_model is None) == precompute
        trainer.train()
        runs.append([*_losses(trainer), trainer.evaluate()["eval_loss"]])
    assert runs[1] == pytest.approx(runs[0], abs=1e-5)
    assert runs[0][0] != pytest.approx(math.log(2), abs=1e-4)


def test_reference_columns_are_used(make, tiny_llama):
    policy, reference = tiny_llama(0), tiny_llama(1)
    live = make(policy=policy, trainer={"ref_model": reference}, precompute_ref_log_probs=True)
    columns = {name: live.train_dataset[name][:] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    data = _pairs()
    for name, values in columns.items():
        data = data.add_column(name, values)
    trainer = make(FixedStrength(0.3), data=data, policy=policy)
    assert trainer.ref_model is None
    batch = trainer.data_collator(list(trainer.train_dataset))
    expected = -logsigmoid(0.3 * _own_margins(policy, reference, batch)).mean()
    assert trainer.compute_loss(policy, batch).item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(ConfigError, match="so ref_model and precompute_ref_log_probs have no effect"):
        make(data=data, trainer={"ref_model": tiny_llama(1)})


def test_the_reference_stays_as_it_was_handed_over(make, tiny_llama):
    trainer = make(GammaStrength(0.5, 0.5), learning_rate=1e-2)
    trainer.train()
    assert torch.equal(_parameters(trainer.ref_model), _parameters(tiny_llama(0)))
    assert not torch.equal(_parameters(trainer.model), _parameters(tiny_llama(0)))


# -- refusals ------------------------------------------------------------------------------------------------------


def test_refuses_num_samples_without_effect(make):
    with pytest.raises(ConfigError, match="num_samples=4 has no effect on a fixed strength"):
        make(FixedStrength(0.1), num_samples=4)


def test_a_constant_strength_trains_with_any_optimizer(make):
    make(FixedStrength(0.1), optim="adamw_bnb_8bit")


class CurveStrength(WeibullStrength):
    """A family with an argument that no file can hold."""

    def __init__(self, curve, scale=0.5):
        super().__init__(scale=scale)
        self.curve = curve


def test_a_strength_that_no_checkpoint_can_hold_is_refused_before_training(make):
    with pytest.raises(ConfigError, match=r"checkpoints can't hold this CurveStrength: .*save_strategy='no'"):
        make(CurveStrength(math.exp), save_strategy="steps")
    trainer = make(CurveStrength(math.exp))
    trainer.train()
    assert trainer.strength.scale.item() != 0.5


def test_refuses_the_policy_as_reference(make, tiny_llama):
    policy = tiny_llama(0)
    with pytest.raises(ConfigError, match="ref_model is the policy itself"):
        make(policy=policy, trainer={"ref_model": policy})


def test_refuses_a_frozen_policy(make, tiny_llama):
    with pytest.raises(ConfigError, match="no parameter of the policy is trained"):
        make(policy=tiny_llama(0).requires_grad_(False))


def test_refuses_an_unknown_group_column(make):
    with pytest.raises(DataError, match=r"no column region for group_columns: there are .*topic"):
        make(group_columns=["topic", "region"])


def test_refuses_an_optimizer_without_the_strength(make, tiny_llama):
    policy, strength = tiny_llama(0), GammaStrength(0.1, 0.5)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="doesn't hold the strength's parameters"):
        make(strength, policy=policy, trainer={"optimizers": (optimizer, None)})
    optimizer.add_param_group({"params": list(strength.parameters()), "lr": 0.01})
    with pytest.raises(
        ConfigError, match=r"strength_learning_rate=0\.05 has no effect on the optimizer that was given"
    ):
        make(strength, policy=policy, trainer={"optimizers": (optimizer, None)})
    trainer = make(
        strength, policy=policy, trainer={"optimizers": (optimizer, None)}, max_steps=2, strength_learning_rate=0.01
    )
    before = strength.mean.item()
    trainer.train()
    assert len(optimizer.param_groups) == 2
    assert strength.mean.item() != before


@pytest.mark.parametrize("strength", [0.1, "lognormal"])
def test_refuses_what_is_no_strength(make, strength):
    with pytest.raises(ConfigError, match="give a strength model such as LogNormalStrength"):
        make(strength)


def test_refuses_a_function_without_the_sites(make):
    def only_beta(margins, preferred=None):
        pyro.sample("beta", dist.LogNormal(0.0, 1.0))

    with pytest.raises(ConfigError, match="only_beta has no site 'preferred'"):
        make(only_beta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect.*'preferred'"),
        ({"marginal": "exact"}, "marginal='exact': choose one of auto, closed_form, quadrature, monte_carlo"),
        ({"marginal": "quadrature", "num_samples": 8}, "num_samples=8 has no effect with marginal='quadrature'"),
        ({"num_samples": 0}, "num_samples=0: must be at least 1"),
        ({"max_length": 0}, "max_length=0: must be at least 1"),
        ({"truncation_mode": "keep_start"}, "truncation_mode='keep_start'"),
        ({"strength_learning_rate": -1.0}, r"strength_learning_rate=-1\.0: must not be negative"),
        ({"precompute_ref_batch_size": 2}, "precompute_ref_batch_size has no effect"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha has no effect with disable_dropout=True"),
        ({"bf16_full_eval": True}, "bf16_full_eval has no effect"),
        ({"fp16_full_eval": True}, "fp16_full_eval has no effect"),
        ({"optim": "adamw_bnb_8bit"}, "optim='adamw_bnb_8bit' of bitsandbytes knows no float64"),
        ({"optim": "lion_32bit"}, "optim='lion_32bit' of bitsandbytes"),
        ({"optim": "galore_adamw_layerwise"}, "optim='galore_adamw_layerwise' .*beta would never be learned"),
        ({"optim": "lomo"}, "optim='lomo' .*beta would never be learned"),
    ],
)
def test_refuses_options(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize("name", ["data_collator", "compute_loss_func", "compute_metrics", "model_init"])
def test_refuses_arguments_without_effect(make, name):
    with pytest.raises(ConfigError, match=f"{name} has no effect"):
        make(trainer={name: lambda *args: None})


def test_refuses_a_missing_tokenizer(tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="processing_class is missing"):
        MixDPOTrainer(tiny_llama(0), args=MixDPOConfig(str(tmp_path), report_to="none", use_cpu=True))


def test_every_metric_of_a_strength_with_priors_is_of_the_fitted_law(make):
    strength = LogNormalStrength(dist.LogNormal(-2.0, 1.0), dist.HalfNormal(1.0))
    trainer = make(strength, eval_data=_pairs())
    trainer.train()
    metrics = trainer.evaluate()
    with pyro.settings.context(module_local_params=True):
        law = strength.law(parameters=trainer.guide.median())
    assert metrics["eval_beta/mean"] == pytest.approx(float(law.mean), rel=1e-6)
    for name, level in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
        assert metrics[f"eval_beta/{name}"] == pytest.approx(float(law.icdf(torch.tensor(level))), rel=1e-5)
    rewards = metrics["eval_beta/mean"] * metrics["eval_margins"]
    assert metrics["eval_rewards/margins"] == pytest.approx(rewards, rel=1e-6)
