"""Training with strengths that depend on columns, and with every further family."""

import json
import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from pluralpref.errors import DataError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer, fit_posterior
from pluralpref.models import (
    FAMILIES,
    CovariateStrength,
    FixedStrength,
    GroupStrength,
    LogNormalStrength,
    ZeroInflatedStrength,
    make_strength,
)


def rows(count=16, **changes):
    return Dataset.from_list(
        [
            {
                "prompt": f"q{i}",
                "chosen": " good" + "!" * (i % 4),
                "rejected": f" bad {i}",
                "difficulty": (i % 5) - 2.0,
                "country": ("north", "south", "west")[i % 3],
                "age": ("young", "old")[i % 2],
                **changes,
            }
            for i in range(count)
        ]
    )


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, short_training, tmp_path):
    def build(strength, data=None, folder="run", **options):
        return MixDPOTrainer(
            tiny_llama(0),
            strength=strength,
            args=MixDPOConfig(**{**short_training, "output_dir": str(tmp_path / folder), **options}),
            train_dataset=rows() if data is None else data,
            processing_class=tiny_tokenizer,
        )

    return build


def test_covariates_reach_the_loss(make, tiny_llama):
    strength = CovariateStrength(["difficulty"], FixedStrength(0.5))
    with torch.no_grad():
        strength.weight_unconstrained.fill_(0.7)
    trainer = make(strength)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    assert batch["context_columns"] == {"difficulty": [(i % 5) - 2.0 for i in range(8)]}
    trainer.ref_model = tiny_llama(1)  # so that margins aren't 0
    loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    beta = 0.5 * torch.exp(0.7 * torch.tensor(batch["context_columns"]["difficulty"], dtype=torch.float64))
    assert outputs["margins"].abs().max() > 1e-3
    expected = -logsigmoid(beta * outputs["margins"].double()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_covariates_are_learned(make):
    strength = CovariateStrength(["difficulty"], LogNormalStrength(0.5, 0.5), hidden=2)
    trainer = make(strength)
    before = {name: p.detach().clone() for name, p in strength.named_parameters()}
    trainer.train()
    for name, parameter in strength.named_parameters():
        assert not torch.equal(parameter.detach(), before[name]), name
    assert "beta/cv" in trainer.state.log_history[0]


def test_groups_are_learned_and_resume(make, tmp_path):
    def strength():
        return GroupStrength(["north", "south", "west"], LogNormalStrength(0.5, 0.5), column="country")

    whole = make(strength(), folder="whole", save_strategy="steps", save_steps=2)
    whole.train()
    effects = whole.guide.median()["effect"]
    assert effects.shape == (3,)
    assert effects.unique().numel() == 3  # groups with different data have moved apart
    assert whole.strength.scale.item() != pytest.approx(0.5, abs=1e-6)
    again = make(strength(), folder="again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(again.guide.median()["effect"], effects, rtol=0, atol=0)
    assert torch.equal(again.strength.scale, whole.strength.scale)
    # The law in a group, at the guide's median.
    law = whole.strength.law(torch.tensor([0, 1, 2]), parameters={"effect": effects})
    ratio = law.mean / whole.strength.strength.law().mean
    torch.testing.assert_close(ratio, torch.exp(whole.strength.scale * effects), rtol=1e-12, atol=0)


COLUMNS = {"country": ["north", "south", "west"], "age": ["young", "old"]}


def test_groups_of_two_columns_reach_the_loss(make, tiny_llama):
    strength = GroupStrength(COLUMNS, FixedStrength(0.5), scale=[0.7, 0.3])
    trainer = make(strength)
    effect = torch.tensor([0.5, -1.0, 2.0, 1.0, -0.5], dtype=torch.float64)
    with torch.no_grad():
        trainer.guide.locs.effect.copy_(effect)
        trainer.guide.scales.effect_unconstrained.fill_(-100.0)  # the guide's draw is its mean
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    assert set(batch["context_columns"]) == {"country", "age"}
    trainer.ref_model = tiny_llama(1)  # so that margins aren't 0
    context = strength.make_context(batch["context_columns"])
    assert context.tolist() == [[i % 3, i % 2] for i in range(8)]
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    # What the effects' prior adds is the same where all margins are 0 and every choice costs log 2.
    trainer.ref_model = trainer.model
    torch.manual_seed(0)
    at_zero = trainer.compute_loss(trainer.model, batch)
    h = outputs["margins"].double()
    assert h.abs().max() > 1e-3
    exponent = torch.stack([0.7 * effect[i % 3] + 0.3 * effect[3 + i % 2] for i in range(8)])
    expected = -logsigmoid(0.5 * torch.exp(exponent) * h).mean() - math.log(2)
    assert (loss - at_zero).item() == pytest.approx(expected.item(), rel=1e-6)


def test_groups_of_two_columns_are_learned_and_resume(make, tmp_path):
    def strength():
        return CovariateStrength(["difficulty"], GroupStrength(COLUMNS, LogNormalStrength(0.5, 0.5)))

    whole = make(strength(), folder="whole", save_strategy="steps", save_steps=2)
    assert whole.strength.context_columns == ("difficulty", "country", "age")
    whole.train()
    effects = whole.guide.median()["strength.effect"]
    assert effects.shape == (5,)
    assert effects.unique().numel() == 5
    scale = whole.strength.strength.scale
    assert scale.shape == (2,)
    assert scale[0].item() != pytest.approx(scale[1].item(), abs=1e-6)
    assert whole.strength.weight.abs().item() > 0
    again = make(strength(), folder="again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(again.guide.median()["strength.effect"], effects, rtol=0, atol=0)
    assert torch.equal(again.strength.strength.scale, scale)


def test_a_context_inside_another_family(make):
    strength = ZeroInflatedStrength(GroupStrength(["north", "south", "west"], column="country"))
    assert strength.context_columns == ("country",)
    make(strength).train()


def test_what_is_refused(make):
    with pytest.raises(DataError, match=r"no column income for CovariateStrength: there are .*difficulty"):
        make(CovariateStrength(["income"]))
    trainer = make(GroupStrength(["north", "south"], column="country"))
    with pytest.raises(DataError, match=r"column 'country': row 2 of a batch has the label 'west'.*north, south"):
        trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    trainer = make(CovariateStrength(["difficulty"]), data=rows(difficulty=float("nan")))
    with pytest.raises(DataError, match=r"column 'difficulty': row 0 of a batch is nan"):
        trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[0]]))
    trainer = make(GroupStrength({"country": ["north", "south", "west"], "age": ["young", "middle"]}))
    with pytest.raises(DataError, match=r"column 'age': row 1 of a batch has the label 'old'.*young, middle"):
        trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    with pytest.raises(DataError, match=r"no column income for GroupStrength: there are"):
        make(GroupStrength({"country": ["north", "south", "west"], "income": ["low", "high"]}))
    with pytest.raises(DataError, match=r"GroupStrength reads the column 'group', which isn't among the data"):
        fit_posterior(GroupStrength(2), torch.randn(10))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(make, family):
    trainer = make(make_strength(family, 0.5), max_steps=2)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # the policy is the reference
    json.dumps(trainer.state.log_history, allow_nan=False)
    law = trainer.strength.law()
    assert torch.isfinite(law.mean)
    learned = trainer.strength.learned()
    assert (not learned) == (family == "fixed")
