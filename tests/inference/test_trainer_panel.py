"""Training in which an annotator's pairs share their strength."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from torch.nn.functional import logsigmoid

from pluralpref.cli.main import main
from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError, DataError, UnsupportedError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer, log_marginal_panel
from pluralpref.inference.annotator_sampler import AnnotatorSampler
from pluralpref.inference.mixdpo import MixDPO
from pluralpref.models import (
    FixedStrength,
    GammaStrength,
    GroupStrength,
    LogNormalStrength,
    MixtureStrength,
    PreferenceModel,
    TwoSiteModel,
)

PEOPLE, CHOICES = 6, 4


def rows(people=PEOPLE, choices=CHOICES):
    """Every third pair has its answers exchanged; weights and soft labels differ."""
    made = []
    for i in range(people * choices):
        answers = [" good" + "!" * (i % 4), f" bad {i}"]
        chosen, rejected = answers if i % 3 else answers[::-1]
        row = {"prompt": f"q{i}", "chosen": chosen, "rejected": rejected, "annotator": f"p{i % people}"}
        made.append({**row, "weight": 1.0 + i % 2, "preferred": 0.9 if i % 5 == 0 else 1.0, "region": "ab"[i % 2]})
    return made


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training):
    def build(strength, *, data=None, eval_data=None, policy=None, **options):
        policy = tiny_llama(0) if policy is None else policy
        reference = tiny_llama(1)
        return MixDPOTrainer(
            policy,
            reference,
            strength=strength,
            args=MixDPOConfig(**{**short_training, "panel": True, **options}),
            train_dataset=Dataset.from_list(rows() if data is None else data),
            eval_dataset=None if eval_data is None else Dataset.from_list(eval_data),
            processing_class=tiny_tokenizer,
        )

    return build


def batch_of(trainer, numbers):
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in numbers]))


def brute_force(law, h, code, weight, preferred):
    """Minus the log-likelihood of people by a fine grid in log beta."""
    u = torch.linspace(-40, 8, 48_001, dtype=torch.float64)[:, None]
    beta = u.exp()
    terms = weight * (preferred * logsigmoid(beta * h) + (1 - preferred) * logsigmoid(-beta * h))
    density = law.log_prob(beta[:, 0]) + u[:, 0]
    people = [terms[:, code == k].sum(1) + density for k in code.unique()]
    return -sum(torch.logsumexp(one, 0) + (u[1, 0] - u[0, 0]).log() for one in people)


@pytest.mark.parametrize("family", [LogNormalStrength, GammaStrength])
def test_the_loss_is_that_of_people(make, family):
    trainer = make(family(mean=0.7, cv=0.8))
    inputs = batch_of(trainer, range(PEOPLE * CHOICES))
    loss, outputs = trainer.compute_loss(trainer.model.train(), inputs, return_outputs=True)
    h, weight = outputs["margins"].detach(), inputs["weight"]
    code = torch.arange(PEOPLE * CHOICES) % PEOPLE
    expected = brute_force(trainer.strength.law(), h, code, weight, inputs["preferred"]) / weight.sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)
    loss.backward()
    found = trainer.strength.beta_cv_unconstrained.grad.clone()
    trainer.strength.beta_cv_unconstrained.grad = None
    expected.backward()
    torch.testing.assert_close(found, trainer.strength.beta_cv_unconstrained.grad, rtol=1e-5, atol=1e-9)
    # Not the loss of choices by as many people.
    trainer.data_collator.panel = False
    single = trainer.compute_loss(trainer.model, batch_of(trainer, range(PEOPLE * CHOICES)))
    assert abs(float(single.detach()) - float(loss.detach())) > 1e-4


def test_whole_people_may_be_divided_into_micro_batches(make):
    """One batch of six people, or three of two each: the same gradients."""
    numbers = [[i for i in range(PEOPLE * CHOICES) if i % PEOPLE in people] for people in ((0, 1), (2, 3), (4, 5))]
    gradients = []
    for split in ([[i for part in numbers for i in part]], numbers):
        trainer = make(LogNormalStrength(mean=0.7, cv=0.8))
        batches = [batch_of(trainer, part) for part in split]
        total = torch.tensor(sum(float(batch["weight"].sum()) for batch in batches))
        for batch in batches:
            trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=total).backward()
        parameters = [*trainer.model.parameters(), *trainer.strength.parameters()]
        gradients.append([p.grad.double() for p in parameters])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_evaluation_takes_people_as_wholes_whatever_the_batches(make):
    found = []
    for size in (1, 5, 24):
        trainer = make(LogNormalStrength(mean=0.7, cv=0.8), eval_data=rows(), per_device_eval_batch_size=size)
        state = torch.get_rng_state()
        found.append(trainer.evaluate())
        assert torch.equal(torch.get_rng_state(), state)
    for other in found[1:]:
        assert other["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
        assert other["eval_rewards/margins"] == pytest.approx(found[0]["eval_rewards/margins"], rel=1e-5)
    output = trainer.predict(trainer.eval_dataset)
    h = torch.as_tensor(output.predictions).double()
    weight, preferred = (torch.tensor([row[n] for row in rows()]).double() for n in ("weight", "preferred"))
    code = torch.arange(len(h)) % PEOPLE
    values = log_marginal_panel(trainer.strength.law(), h, code, PEOPLE, weight=weight, preferred=preferred)
    expected = float((-values.sum() / weight.sum()).detach())
    assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-6)
    assert found[0]["eval_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_samples": 8}, {"gradient_accumulation_steps": 2}])
def test_training_runs_and_is_reproducible(make, options):
    losses = []
    for _ in range(2):
        trainer = make(LogNormalStrength(mean=0.7, cv=0.8), max_steps=4, per_device_train_batch_size=8, **options)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        assert trainer.strength.cv != pytest.approx(0.8, abs=1e-6)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_priors_count_once_beside_people(make):
    trainer = make(LogNormalStrength(dist.LogNormal(-1.0, 1.0), dist.HalfNormal(1.0)), max_steps=2)
    trainer.train()
    assert torch.isfinite(torch.tensor([line["loss"] for line in trainer.state.log_history if "loss" in line])).all()


def test_groups_scale_a_persons_one_strength(make):
    strength = GroupStrength(["a", "b"], LogNormalStrength(mean=0.7, cv=0.8), column="region")
    trainer = make(strength, max_steps=2, eval_data=rows())
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))


def test_the_scale_of_a_batch_multiplies_its_likelihood():
    model = PreferenceModel(LogNormalStrength(mean=0.7, cv=0.8))
    h, code = torch.randn(6, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    once, thrice = (MixDPO().loss(model, lambda *a, **k: None, h, annotator=code, scale=s) for s in (1.0, 3.0))
    assert thrice == pytest.approx(3 * once)
    with pytest.raises(DataError, match="scale=0"):
        model(h, scale=0.0)


def test_laws_that_differ_in_more_than_their_scale_are_refused():
    class Two(LogNormalStrength):
        def forward(self, context=None):
            return dist.LogNormal(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.0]))

    with pytest.raises(UnsupportedError, match="no one beta that a person's choices share"):
        MixDPO().loss(PreferenceModel(Two()), lambda *a, **k: None, torch.randn(2), annotator=torch.tensor([0, 0]))


def test_sampler_keeps_people_together():
    names = [f"p{i % 7}" for i in range(50)]
    sampler = AnnotatorSampler(names, 4, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(50))
        people = [names[i] for i in order]
        assert sum(a != b for a, b in pairwise(people)) == 6
        orders.append(order)
    assert orders[0] == orders[2] != orders[1]
    assert list(AnnotatorSampler(names, 4, seed=4)) != orders[0]
    assert len(sampler) == 50
    with pytest.raises(ConfigError, match="batch_size=0"):
        AnnotatorSampler(names, 0)


def test_people_who_fill_a_batch_together_are_put_into_one():
    names = [f"a{i // 3}" for i in range(30)] + [f"b{i // 5}" for i in range(50)]
    for seed in range(5):
        people = [names[i] for i in AnnotatorSampler(names, 8, seed=seed)]
        assert all(len(set(people[i : i + 8])) == 2 for i in range(0, 80, 8))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_people_are_cut_only_where_nobody_else_fits(sizes, batch_size, seed):
    names = [person for person, size in enumerate(sizes) for _ in range(size)]
    order = list(AnnotatorSampler(names, batch_size, seed))
    assert sorted(order) == list(range(len(names)))
    waiting = dict(enumerate(sizes))
    start = 0
    while start < len(order):
        person = names[order[start]]
        size = waiting.pop(person)
        assert [names[i] for i in order[start : start + size]] == [person] * size
        room = batch_size - start % batch_size
        if size > room and room < batch_size:  # cut in two, which a later batch might have held as one
            assert min([size, *waiting.values()]) > room
            assert size > batch_size or max([size, *waiting.values()]) <= batch_size
        start += size


def test_refusals(make):
    with pytest.raises(ConfigError, match="panel=True has no effect on a fixed strength"):
        make(FixedStrength(0.1))
    without = [{k: v for k, v in row.items() if k != "annotator"} for row in rows()]
    with pytest.raises(DataError, match=r"no column annotator for panel=True"):
        make(LogNormalStrength(), data=without)

    def function(margins, preferred=None):
        import pyro

        with pyro.plate("pairs", len(margins)):
            beta = pyro.sample("beta", dist.LogNormal(0.0, 1.0))
            pyro.sample("preferred", dist.Bernoulli(logits=beta * margins), obs=preferred)

    with pytest.raises(ConfigError, match="panel=True needs a StrengthModel, not the Pyro function function"):
        make(TwoSiteModel(function))
    with pytest.raises(ConfigError, match="train_sampling_strategy='group_by_length' has no effect with panel=True"):
        make(LogNormalStrength(), train_sampling_strategy="group_by_length")
    nameless = [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "annotator": None, "row": 17}]
    with pytest.raises(DataError, match="row 17 has no annotator"):
        PreferenceCollator(0, panel=True)(nameless)


def test_mixtures_are_panels_of_their_parts(make):
    trainer = make(MixtureStrength([LogNormalStrength(0.3, 0.5), GammaStrength(1.0, 0.5)]), max_steps=2)
    trainer.train()
    assert len([1 for line in trainer.state.log_history if "loss" in line]) == 2


def test_on_the_command_line(tmp_path, tiny_llama, tiny_tokenizer):
    import json

    tiny_llama(0).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    source = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    run = ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--report_to", "none", "--use_cpu", "True"]
    assert main(["train", *source, *run, "--panel", "True", "--disable_tqdm", "True"]) == 0
    assert (tmp_path / "run" / "strength" / "strength.safetensors").is_file()
