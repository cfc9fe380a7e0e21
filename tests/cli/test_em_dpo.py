"""The command ``pluralpref em-dpo``: one run on a tiny model, and what it refuses."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from pluralpref.cli.em_dpo import main
from pluralpref.data import read_margins
from pluralpref.errors import ConfigError, DataError
from pluralpref.inference.em_dpo import EMDPOResult

pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, make_workplace):
    """A folder with a model and two files of pairs."""
    files = {}
    for name, start in (("train", 0), ("held_out", 100)):
        rows = [
            {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "annotator": f"p{i % (4 + start // 50)}"}
            for i in range(start, start + 12)
        ]
        files[name] = [*rows, {"prompt": "q", "chosen": "same", "rejected": "same", "annotator": "p0"}]
    return make_workplace(tmp_path_factory.mktemp("em-dpo"), **files)


def arguments(folder, *more):
    return [
        "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "train.jsonl"),
        "--eval_dataset_name", str(folder / "held_out.jsonl"), "--output_dir", str(folder / "run"), "--num_classes", "2",
        "--iterations", "1", "--beta", "0.5", "--max_steps", "2", "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "True", "--disable_tqdm", "True",
        "--save_strategy", "no", *more,
    ]  # fmt: skip


def test_a_run(workplace, capsys):
    run = workplace / "run"
    assert main(arguments(workplace, "--ref_model_name_or_path", str(workplace / "model"))) == 0
    shown = capsys.readouterr().out
    assert "12 of 13 rows used" in shown
    assert "iteration 1, class 2: 12 pairs, 0 without weight in the class skipped" in shown
    result = EMDPOResult.load(run)
    assert result.annotators == ("p0", "p1", "p2", "p3")
    for folder in result.policies:
        assert f"policy: {folder}" in shown
        AutoModelForCausalLM.from_pretrained(folder)
    tables = [read_margins(run / f"margins-class-{k}.parquet") for k in (1, 2)]
    margins = torch.stack([table.margins for table in tables], 1)
    assert torch.equal(margins, result.margins("held_out"))
    assert tables[0].metadata["policy"] == str(result.policies[0])
    # The mixture's log-loss, written out: p0 to p3 are known, p4 and p5 aren't.
    known = dict(zip(result.annotators, result.responsibilities, strict=True))
    shares = torch.stack([known.get(name, result.eta) for name in tables[0].annotator])
    probability = (shares * torch.sigmoid(0.5 * margins)).sum(1)
    loss, accuracy = float(-probability.log().mean()), float((probability > 0.5).double().mean())
    assert f"held-out log-loss {loss:.4f} nats a pair, accuracy {accuracy:.1%}" in shown
    assert "4 of 6 annotators known" in shown
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["num_classes"] == 2
    assert config["beta"] == 0.5
    assert json.loads((run / "rows.json").read_text())["train"]["skipped"] == {"tie": 1}

    with pytest.raises(ConfigError, match="holds another run"):
        main(arguments(workplace))
    # One iteration more, with the options of the run's own file.
    assert main(["--config", str(run / "config.yaml"), "--iterations", "2", "--resume_from_checkpoint", "True"]) == 0
    more = EMDPOResult.load(run)
    assert len(more.log_likelihoods) == 2
    assert more.log_likelihoods[0] == result.log_likelihoods[0]
    assert more.policies[0].parent.name == "iteration-2"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Example: pluralpref em-dpo --model_name_or_path gpt2" in shown
    assert "--num_classes" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_classes", "0"], "num_classes=0"),
        (["--iterations", "0"], "iterations=0"),
        (["--beta", "-1"], "beta=-1.0"),
        (["--start_from", "scratch"], "start_from='scratch'"),
        (["--reward_model", "True"], "--reward_model has no effect"),
        (["--loss_type", "ipo"], "loss_type='ipo' has no effect"),
        (["--panel", "True"], "panel=True has no effect"),
        (["--eval_strategy", "epoch"], "eval_strategy=.* has no effect"),
        (["--push_to_hub", "True"], "push_to_hub=True has no effect"),
        (["--hub_model_id", "me/it"], "hub_model_id"),
        (["--lora_r", "4"], "--lora_r has no effect without --use_peft"),
        (["--strength", "gamma"], "--strength"),
        (["--resume_from_checkpoint", "run/iteration-1"], "give True"),
    ],
)
def test_options_refused(workplace, more, message):
    with pytest.raises(ConfigError, match=message):
        main(arguments(workplace, "--output_dir", str(workplace / "refused"), *more))
    assert not (workplace / "refused").exists()


def test_data_without_annotators_are_refused(workplace):
    path = workplace / "nobody.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}) + "\n")
    with pytest.raises(DataError, match="no column 'annotator'"):
        main(arguments(workplace, "--dataset_name", str(path), "--output_dir", str(workplace / "refused")))
    assert not (workplace / "refused" / "config.yaml").exists()
