"""EM-DPO's driver: against plain DPO, in a world of two classes, killed and resumed, and what it refuses."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pluralpref.data import PreferenceCollator, tokenize_preferences
from pluralpref.demo.population import TOPICS, WORDS, build_tokenizer
from pluralpref.errors import ConfigError, DataError, PluralPrefWarning, UnsupportedError
from pluralpref.inference import MixDPOConfig, MixDPOTrainer
from pluralpref.inference.em_dpo import EMDPO, EMDPOResult, driver
from pluralpref.likelihood import precompute_reference, score_margins
from pluralpref.models import FixedStrength

pytestmark = pytest.mark.usefixtures("quick_collection")

PEOPLE = 30


def two_classes(choices, seed, right=0.9):
    """Answers of bright or of dull words; every other person likes bright ones, the rest dull ones, nine times of ten."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(PEOPLE):
        for _ in range(choices):
            bright, dull = (" ".join(WORDS[i] for i in start + rng.integers(6, size=3)) for start in (0, 6))
            better, worse = (bright, dull) if (person % 2 == 0) == (rng.random() < right) else (dull, bright)
            prompt = TOPICS[rng.integers(len(TOPICS))]
            rows.append({"prompt": prompt, "chosen": better, "rejected": worse, "annotator": f"person {person}"})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def words():
    return build_tokenizer()


@pytest.fixture(scope="module")
def base(words):
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def short():
    return {
        "learning_rate": 3e-3, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 256,
        "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def make_in(base, words, short):
    """Drivers of two iterations on few choices; options go to the driver, ``args`` to its configuration."""

    def build(folder, train=None, args=None, **options):
        return EMDPO(
            options.pop("policy", base),
            **{"beta": 1.0, "num_classes": 2, "iterations": 2, **options},
            args=MixDPOConfig(str(folder), **{**short, **(args or {})}),
            train_dataset=two_classes(3, 0) if train is None else train,
            processing_class=words,
        )

    return build


@pytest.fixture
def make(make_in, tmp_path):
    return lambda **options: make_in(tmp_path / "run", **options)


@pytest.fixture(scope="module")
def whole(make_in, tmp_path_factory):
    """A run that nothing interrupted."""
    return make_in(tmp_path_factory.mktemp("whole")).train()


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _losses(path):
    return [line["loss"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]


# -- two classes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(base, words, short, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    train, held_out = two_classes(8, 1), two_classes(5, 2)
    driver = EMDPO(
        base, beta=1.0, num_classes=2, iterations=4, args=MixDPOConfig(str(folder / "em"), **short), train_dataset=train,
        eval_dataset=held_out, processing_class=words,
    )  # fmt: skip
    return folder, driver.train(), train, held_out


def test_opposite_tastes_are_separated(world, base, words, short):
    folder, result, train, held_out = world
    gamma, names = result.responsibilities, list(result.annotators)
    assert names == [f"person {i}" for i in range(PEOPLE)]
    bright = gamma[0::2].mean(0).argmax()  # which class is whose is open
    right = torch.cat([gamma[0::2, bright], gamma[1::2, 1 - bright]])
    assert (right > 0.9).float().mean() > 0.9
    assert result.eta.tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    assert list(result.log_likelihoods) == sorted(result.log_likelihoods)

    # One policy, as many steps as each class had.
    args = MixDPOConfig(str(folder / "dpo"), **{**short, "num_train_epochs": 4})
    policy = copy.deepcopy(base)
    trainer = MixDPOTrainer(policy, None, FixedStrength(1.0), args, train, held_out, processing_class=words)
    trainer.train()
    one = trainer.evaluate()["eval_loss"]
    known = result.metrics(result.margins("held_out"), held_out["annotator"][:])
    assert known["log_loss"] < 0.5 < one
    assert known["accuracy"] > 0.8
    assert known["annotators/known"] == PEOPLE
    # People who are new, with the same tastes: their own earlier choices tell the class.
    strangers = result.metrics(result.margins("held_out"), [f"new {name}" for name in held_out["annotator"]])
    assert strangers["log_loss/sequential"] < strangers["log_loss"] - 0.1
    assert strangers["log_loss/sequential"] < one


def test_files_of_a_run(world, words):
    folder, result, train, held_out = world
    run = folder / "em"
    record = json.loads((run / "em.json").read_text())
    assert len(record["iterations"]) == 4
    assert record["settings"]["beta"] == 1.0
    last = record["iterations"][-1]
    assert last["eta"] == result.responsibilities.mean(0).tolist()
    assert [a + b for a, b in zip(last["trained_pairs"], last["skipped_pairs"], strict=True)] == [len(train)] * 2
    # Classes are so clear by now that others' pairs weigh nothing.
    assert min(last["skipped_pairs"]) > 0
    # The log-likelihood, written out.
    probabilities = torch.sigmoid(result.margins("train"))
    total = 0.0
    for person in range(PEOPLE):
        rows = torch.tensor([name == f"person {person}" for name in train["annotator"]])
        total += float(torch.log((result.eta * probabilities[rows].prod(0)).sum()))
    assert last["log_likelihood"] == pytest.approx(total, rel=1e-9)
    expected = result.metrics(result.margins("held_out"), held_out["annotator"][:])
    assert last["held_out"] == pytest.approx(expected)
    # Policies of the last iteration alone are kept; they give the margins that were saved.
    assert sorted(str(p.relative_to(run)) for p in run.glob("iteration-*/class-*/model.safetensors")) == [
        "iteration-4/class-1/model.safetensors", "iteration-4/class-2/model.safetensors",
    ]  # fmt: skip
    assert not (run / "base").exists()
    assert not list(run.glob("**/*.training")) + list(run.glob("**/.*"))
    assert len(list(run.glob("iteration-*/responsibilities.csv"))) == 4
    pairs, _ = tokenize_preferences(held_out, words)
    collator = PreferenceCollator(words.pad_token_id)
    assert EMDPOResult.load(run).policies == result.policies
    policies = [AutoModelForCausalLM.from_pretrained(path) for path in result.policies]
    with torch.no_grad():
        a, b = (score_margins(p, p, pairs, collator, progress=False) for p in policies)
    # Margins differ by the reference alone, which is the same for both classes.
    differences = (a["chosen_logps"] - a["rejected_logps"]) - (b["chosen_logps"] - b["rejected_logps"])
    saved = result.margins("held_out")
    torch.testing.assert_close(saved[:, 0] - saved[:, 1], differences, rtol=0, atol=1e-4)


# -- the M-step ------------------------------------------------------------------------------------------------------


def test_one_class_is_plain_dpo(make, base, words, short, tmp_path):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    result = make(num_classes=1, iterations=1).train()
    assert result.responsibilities.tolist() == [[1.0]] * PEOPLE
    policy = copy.deepcopy(base)
    args = MixDPOConfig(str(tmp_path / "dpo"), **short)
    MixDPOTrainer(policy, None, FixedStrength(1.0), args, two_classes(3, 0), processing_class=words).train()
    log = tmp_path / "run" / "iteration-1" / "class-1.metrics.jsonl"
    assert _losses(log) == _losses(tmp_path / "dpo" / "metrics.jsonl")
    assert len(_losses(log)) == 3
    for name, value in _weights(result.policies[0]).items():
        assert torch.equal(value, policy.state_dict()[name]), name
    for name, value in base.state_dict().items():  # the caller's model is left as it was
        assert torch.equal(value, before[name]), name


def test_starting_from_the_base_again(make, base, words, short, tmp_path):
    """The second iteration of one class is then plain DPO as well, with the data in another order."""
    result = make(num_classes=1, iterations=2, start_from="base").train()
    policy = copy.deepcopy(base)
    args = MixDPOConfig(str(tmp_path / "dpo"), **{**short, "seed": 43})
    MixDPOTrainer(policy, None, FixedStrength(1.0), args, two_classes(3, 0), processing_class=words).train()
    for name, value in _weights(result.policies[0]).items():
        assert torch.equal(value, policy.state_dict()[name]), name


@pytest.mark.parametrize("size", [1, 2, 4])
def test_weights_count_at_any_batch_size(base, words, short, tmp_path, size):
    """By gradient descent with steps so small that they add up, all batch sizes move towards the same weighted sum."""
    weight = [0.2, 0.9, 0.3, 0.6]  # no two of them have the mean of all
    pairs = two_classes(1, 5).select(range(4)).add_column("weight", weight)

    def moved(data, batch):
        policy = copy.deepcopy(base).double()
        options = {
            "learning_rate": 1e-7, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
            "per_device_train_batch_size": batch,
        }  # fmt: skip
        args = MixDPOConfig(str(tmp_path / f"{len(data)}-{batch}"), **{**short, **options})
        MixDPOTrainer(policy, None, FixedStrength(1.0), args, data, processing_class=words).train()
        change = policy.lm_head.weight.detach() - base.lm_head.weight.detach().double()
        return change / 1e-7

    alone = pairs.remove_columns("weight").add_column("weight", [1.0] * 4)
    each = [moved(alone.select([i]), 1) for i in range(4)]
    # A step divides by its number of pairs times the mean weight, which is a half.
    expected = sum(w * gradient for w, gradient in zip(weight, each, strict=True)) / (size * 0.5)
    torch.testing.assert_close(moved(pairs, size), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.01


def test_a_class_without_people(make, base, monkeypatch):
    gamma = torch.tensor([[1.0, 0.0]] * PEOPLE, dtype=torch.float64)
    gamma[0] = torch.tensor([1 - 1e-9, 1e-9])
    monkeypatch.setattr(driver, "initial_responsibilities", lambda *args: gamma)
    lines = []
    with pytest.warns(PluralPrefWarning, match="class 2 is nearly empty"):
        result = make(iterations=1, report=lines.append).train()
    assert lines[1] == "iteration 1, class 2: 0 pairs, 90 without weight in the class skipped"
    record = json.loads((result.policies[0].parents[1] / "em.json").read_text())["iterations"][0]
    assert record["trained_pairs"] == [90, 0]
    assert record["skipped_pairs"] == [0, 90]
    for name, value in _weights(result.policies[1]).items():
        assert torch.equal(value, base.state_dict()[name]), name
    assert result.margins("train")[:, 1].abs().max() < 1e-5


def test_adapters(make, base, words):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])

    def policy():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return peft.get_peft_model(copy.deepcopy(base), config)

    result = make(policy=policy, args={"learning_rate": 0.05}).train()
    pairs, _ = tokenize_preferences(two_classes(3, 0), words)
    collator = PreferenceCollator(words.pad_token_id)
    pairs = precompute_reference(base, pairs, collator, progress=False)
    for k, folder in enumerate(result.policies):
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        trained = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
        found = score_margins(trained, None, pairs, collator, progress=False)["margins"]
        torch.testing.assert_close(found, result.margins("train")[:, k], rtol=0, atol=1e-4)
    assert (result.margins("train")[:, 0] - result.margins("train")[:, 1]).abs().max() > 0.01


def test_weights_labels_and_a_reference_of_its_own(make, base, words):
    """A weight of 0 takes a choice out of the E-step, a label of 0 turns it round; margins are against the reference."""
    train = two_classes(3, 0)
    reference = copy.deepcopy(base)
    with torch.no_grad():
        reference.lm_head.weight *= 0.5
    doubled = train.add_column("weight", [2.0, 0.0, 1.0] * PEOPLE).add_column("preferred", [1.0, 1.0, 0.0] * PEOPLE)
    result = make(train=doubled, reference=reference, iterations=1).train()
    pairs, _ = tokenize_preferences(train, words)
    policy = AutoModelForCausalLM.from_pretrained(result.policies[0])
    found = score_margins(policy, reference, pairs, PreferenceCollator(0), progress=False)["margins"]
    torch.testing.assert_close(found, result.margins("train")[:, 0], rtol=0, atol=1e-4)
    h = result.margins("train").view(PEOPLE, 3, 2)
    joint = 2 * torch.nn.functional.logsigmoid(h[:, 0]) + torch.nn.functional.logsigmoid(-h[:, 2])
    start = driver.initial_responsibilities(PEOPLE, 2, 42).mean(0).log()
    torch.testing.assert_close(result.responsibilities, torch.softmax(start + joint, 1), rtol=1e-9, atol=0)
    record = json.loads((result.policies[0].parents[1] / "em.json").read_text())["iterations"][0]
    assert record["skipped_pairs"] == [PEOPLE, PEOPLE]


# -- killed and resumed ----------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


#: The moment, and the steps (by how many came before in the M-step) that are left for the resumed run.
MOMENTS = {
    "between classes": [0, 1, 2],
    "between iterations": [0, 1, 2, 0, 1, 2],
    "in a class": [2, 0, 1, 2],
    "while a policy is saved": [],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(make, whole, monkeypatch, moment, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    steps, step, save = [], MixDPOTrainer.training_step, LlamaForCausalLM.save_pretrained

    def report(line):
        if moment == "between classes" and line.startswith("iteration 2, class 2:"):
            raise Killed
        if moment == "between iterations" and line.startswith("iteration 1: "):
            raise Killed

    def training_step(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if moment == "in a class" and len(steps) == 3 * 2 + 3:  # the third step of the second iteration's first class
            raise Killed
        return step(self, *args, **kwargs)

    def save_pretrained(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        if moment == "while a policy is saved" and str(folder).endswith("iteration-2/.class-2.partial"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MixDPOTrainer, "training_step", training_step)
        patch.setattr(LlamaForCausalLM, "save_pretrained", save_pretrained)
        with pytest.raises(Killed):
            make(args=saving, report=report).train()
    with pytest.raises(ConfigError, match="holds another run"):
        make(args=saving).train()
    # What a process that can't clean up leaves behind.
    (tmp_path / "run" / "iteration-2" / ".class-2.partial").mkdir(parents=True, exist_ok=True)
    lines, again = [], []

    def training_step_again(self, *args, **kwargs):
        again.append(self.state.global_step)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MixDPOTrainer, "training_step", training_step_again)
        result = make(args=saving, report=lines.append).train(resume=True)
    assert again == MOMENTS[moment]
    assert not any(line.startswith("iteration 1") for line in lines)
    assert result.log_likelihoods == whole.log_likelihoods
    assert torch.equal(result.responsibilities, whole.responsibilities)
    for mine, theirs in zip(result.policies, whole.policies, strict=True):
        for name, value in _weights(mine).items():
            assert torch.equal(value, _weights(theirs)[name]), name
    assert not list((tmp_path / "run").glob("iteration-1/class-*/"))


def test_more_iterations_later(make, whole):
    make(iterations=1).train()
    assert make().train(resume=True).log_likelihoods == whole.log_likelihoods
    lines = []
    assert make(report=lines.append).train(resume=True).log_likelihoods == whole.log_likelihoods
    assert lines == []
    with pytest.raises(ConfigError, match="iterations=1: the run in output_dir has 2 already"):
        make(iterations=1).train(resume=True)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0: must be a whole number of at least 1"),
        ({"iterations": 0}, "iterations=0: must be"),
        ({"beta": 0.0}, "beta=0.0: must be"),
        ({"beta": float("nan")}, "beta=nan: must be"),
        ({"start_from": "scratch"}, "start_from='scratch': choose one of previous, base"),
        ({"args": {"loss_type": "ipo"}}, "loss_type='ipo' has no effect"),
        ({"args": {"panel": True}}, "panel=True has no effect"),
        ({"args": {"num_samples": 4}}, "num_samples=4 has no effect"),
        ({"args": {"strength_learning_rate": 0.5}}, "strength_learning_rate=0.5 has no effect"),
    ],
)
def test_options_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_data_refused(make):
    train = two_classes(1, 0)
    with pytest.raises(DataError, match="no column 'annotator'"):
        make(train=train.remove_columns("annotator"))
    names = ["a", "b", None, *["c"] * (PEOPLE - 3)]
    unnamed = train.remove_columns("annotator").add_column("annotator", names)
    with pytest.raises(DataError, match="row 2: column 'annotator' is empty"):
        make(train=unnamed)
    with pytest.raises(DataError, match="row 2: column 'annotator' is empty"):
        make(eval_dataset=unnamed)
    columns = train.add_column("ref_chosen_logps", [0.0] * PEOPLE).add_column("ref_rejected_logps", [0.0] * PEOPLE)
    with pytest.raises(ConfigError, match="the other hasn't"):
        make(train=columns, eval_dataset=train).train()


def test_other_runs_are_not_gone_on_with(make, base):
    make(iterations=1, num_classes=1).train()
    for options, name in (
        ({"beta": 2.0}, "beta"),
        ({"num_classes": 2}, "num_classes"),
        ({"seed": 5}, "initial_seed"),
        ({"train": two_classes(3, 9)}, "train_pairs"),
        ({"eval_dataset": two_classes(1, 0)}, "held_out_pairs"),
        ({"args": {"learning_rate": 1e-4}}, "learning_rate"),
    ):
        with pytest.raises(ConfigError, match=f"began with {name}="):
            make(**{"num_classes": 1, **options}).train(resume=True)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.lm_head.weight *= 3
    with pytest.raises(ConfigError, match="the reference isn't the one"):
        make(policy=other, num_classes=1).train(resume=True)


def test_policies_refused(make):
    with pytest.raises(ConfigError, match="policy is int: give a model"):
        make(policy=lambda: 3).train()
    from transformers import LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1
    )
    with pytest.raises(UnsupportedError, match="reward model"):
        make(policy=LlamaForSequenceClassification(config)).train()
