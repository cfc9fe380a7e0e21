from __future__ import annotations

import json
import types

import pytest
import yaml

from pluralpref.cli.main import COMMANDS, main
from pluralpref.data import read_margins
from pluralpref.errors import NumericsWarning
from pluralpref.evaluation import held_out_metrics
from pluralpref.models import StrengthModel


@pytest.fixture
def workplace(tmp_path, make_workplace):
    """A folder with a model and two files of pairs."""
    files = {}
    for name, start in (("train", 0), ("held_out", 100)):
        rows = [
            {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "annotator": f"p{i % 4}"}
            for i in range(start, start + 24)
        ]
        files[name] = [*rows, {"prompt": "q", "chosen": "same", "rejected": "same", "annotator": "p0"}]
    return make_workplace(tmp_path, **files)


def train_arguments(folder, *more):
    return [
        "train", "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "train.jsonl"),
        "--eval_dataset_name", str(folder / "held_out.jsonl"), "--output_dir", str(folder / "run"),
        "--max_steps", "6", "--save_steps", "3", "--logging_steps", "1", "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "True", "--disable_tqdm", "True", *more,
    ]  # fmt: skip


def test_train_margins_posterior_report(workplace, capsys):
    run = workplace / "run"
    assert main(train_arguments(workplace, "--strength", "gamma", "--beta", "0.2")) == 0
    assert "24 of 25 rows used" in capsys.readouterr().out
    assert (run / "policy" / "model.safetensors").is_file()
    strength = StrengthModel.from_pretrained(run / "strength")
    assert type(strength).__name__ == "GammaStrength"
    assert float(strength.mean) != pytest.approx(0.2, abs=1e-9)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["strength"] == "gamma"
    assert config["max_steps"] == 6
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][:6] == [*range(1, 7)]
    table = read_margins(run / "margins.parquet")
    assert len(table) == 24
    assert set(table.annotator) == {"p0", "p1", "p2", "p3"}

    again = workplace / "again.parquet"
    score = ["margins", "--policy", str(run / "policy"), "--reference", str(workplace / "model")]
    assert main([*score, "--dataset_name", str(workplace / "held_out.jsonl"), "--output", str(again)]) == 0
    assert (read_margins(again).margins - table.margins).abs().max() < 1e-5

    draws = ["--num_samples", "20", "--num_warmup", "20", "--num_chains", "2"]
    people = ["--people", str(run / "people.csv")]
    with pytest.warns(NumericsWarning):  # so few draws can't converge
        assert main(["posterior", "--margins", str(again), "--output", str(run / "posterior.nc"), *draws, *people]) == 0
    rows = (run / "people.csv").read_text().splitlines()
    assert len(rows) == 5
    assert rows[0].startswith("annotator,choices,agreement,beta_mean,")
    assert main(["report", "--run_dir", str(run)]) == 0
    html = (run / "report.html").read_text()
    assert "skipped/tie" in html
    assert "beta_cv" in html
    assert all(f">{heading}</h2>" in html for heading in ("People", "Predictive checks"))
    capsys.readouterr()
    assert main(["evaluate", "--run_dir", str(run), "--output", str(run / "metrics.json")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((run / "metrics.json").read_text())
    expected = held_out_metrics(strength, table.margins, annotator=table.annotator, preferred=table.preferred)
    assert found["metrics"] == pytest.approx(expected)
    assert f"margins/macro        {expected['margins/macro']:.6g}"[:20] in shown
    assert len(found["calibration"]["predicted"]) == len(found["calibration"]["observed"]) > 1
    for more, message in (
        (["--output", str(run / "metrics.json")], "metrics.json exists"),
        (["--bins", "-1"], "--bins -1"),
        (["--margins", str(again), "--strength", str(run / "strength")], "--run_dir has no effect"),
        (["--group_columns", "country"], "has no column 'country'"),
    ):
        assert main(["evaluate", "--run_dir", str(run), *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--margins", str(again)]) == 2
    assert "--strength (or --run_dir) is missing" in capsys.readouterr().err
    alone = workplace / "alone.html"
    assert main(["report", "--posterior", str(run / "posterior.nc"), "--output", str(alone)]) == 0
    assert ">People</h2>" in alone.read_text()
    capsys.readouterr()
    for arguments, message in (
        (["report", "--posterior", str(run / "posterior.nc")], "--output (or --run_dir) is missing"),
        (["report", "--output", "r.html"], "--posterior (or --run_dir) is missing"),
        (["posterior", "--margins", str(again), "--people", "people.txt"], "must end in .csv or .parquet"),
        (["posterior", "--margins", str(again), "--single_choices", *people, "--overwrite"], "--people has no effect"),
        (["posterior", "--margins", str(again), *people], "people.csv exists"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_train_with_groups_and_covariates(workplace, capsys):
    for name in ("train", "held_out"):
        path = workplace / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["country"], row["difficulty"] = ("north", "south")[i % 2], i % 5 - 2
            row["age"], row["planet"] = ("young", "middle", "old")[i % 3], "earth"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = ["--strength", "group", "--strength_columns", "country", "--strength_of", "gamma", "--beta", "0.2"]
    assert main(train_arguments(workplace, *groups)) == 0
    strength = StrengthModel.from_pretrained(workplace / "run" / "strength")
    assert strength.groups == ("north", "south")
    assert type(strength.strength).__name__ == "GammaStrength"
    assert yaml.safe_load((workplace / "run" / "config.yaml").read_text())["strength_columns"] == ["country"]
    assert main(train_arguments(workplace, *groups, "--resume_from_checkpoint", "True")) == 0
    # The run's own file of options starts the same run.
    again = ["train", "--config", str(workplace / "run" / "config.yaml"), "--output_dir", str(workplace / "again")]
    assert main(again) == 0
    repeated = StrengthModel.from_pretrained(workplace / "again" / "strength")
    assert repeated.state_dict() == strength.state_dict()
    crossed = ["--strength", "group", "--strength_columns", "country", "age", "--strength_of", "gamma"]
    assert main(train_arguments(workplace, *crossed, "--output_dir", str(workplace / "crossed"))) == 0
    strength = StrengthModel.from_pretrained(workplace / "crossed" / "strength")
    assert strength.groups == {"country": ("north", "south"), "age": ("middle", "old", "young")}
    assert strength.scale.shape == (2,)
    capsys.readouterr()
    covariate = ["--strength", "covariate", "--strength_columns", "difficulty", "--strength_hidden", "2"]
    assert main(train_arguments(workplace, *covariate, "--output_dir", str(workplace / "other"))) == 0
    assert "CovariateStrength" in capsys.readouterr().out
    for options, message in (
        (["--strength", "group"], "--strength group needs --strength_columns"),
        (["--strength_of", "gamma"], "--strength_of has no effect on --strength lognormal"),
        (["--strength", "group", "--strength_columns", "income"], "--strength_columns income: no such column"),
        (["--strength", "group", "--strength_columns", "country", "planet"], "--strength_columns planet: 1 different"),
        (
            ["--strength", "group", "--strength_columns", "country", "income"],
            "--strength_columns income: no such column",
        ),
        (["--strength", "group", "--strength_columns", "age", "age"], "--strength_columns age is given twice"),
        (["--strength", "group", "--strength_columns", "country", "--strength_hidden", "2"], "has no effect"),
    ):
        assert main(train_arguments(workplace, *options, "--output_dir", str(workplace / "refused"))) == 2
        assert message in capsys.readouterr().err


def test_adapters(workplace, capsys):
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    adapters = ["--use_peft", "True", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    assert main(train_arguments(workplace, *adapters)) == 0
    policy = workplace / "run" / "policy"
    assert json.loads((policy / "adapter_config.json").read_text())["r"] == 4
    assert not (policy / "model.safetensors").exists()
    trained = read_margins(workplace / "run" / "margins.parquet").margins
    again = workplace / "again.parquet"
    score = ["margins", "--policy", str(policy), "--reference", str(workplace / "model")]
    assert main([*score, "--dataset_name", str(workplace / "held_out.jsonl"), "--output", str(again)]) == 0
    assert (read_margins(again).margins - trained).abs().max() < 1e-4
    assert trained.abs().max() > 1e-4
    assert main(train_arguments(workplace, *adapters, "--resume_from_checkpoint", "True")) == 0
    capsys.readouterr()
    for options, message in (
        (["--lora_r", "4"], "--lora_r has no effect without --use_peft True"),
        ([*adapters, "--lora_dropout", "0.1"], "--lora_dropout has no effect while dropout is disabled"),
        (["--use_peft", "True", "--lora_target_modules", "nonsense"], "--use_peft: Target modules"),
    ):
        assert main(train_arguments(workplace, *options, "--output_dir", str(workplace / "refused"))) == 2
        assert message in capsys.readouterr().err
    assert peft.__version__


def test_adapters_on_weights_in_four_bits(workplace, capsys):
    pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
    pytest.importorskip("peft", reason="needs the quantization extra")
    four = ["--load_in_4bit", "True"]
    adapters = ["--use_peft", "True", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    assert main(train_arguments(workplace, *four, *adapters)) == 0
    run = workplace / "run"
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["margins"] == 0
    trained = read_margins(run / "margins.parquet").margins
    assert trained.abs().max() > 1e-4
    again = workplace / "again.parquet"
    score = ["margins", "--policy", str(run / "policy"), "--reference", str(workplace / "model"), *four]
    assert main([*score, "--dataset_name", str(workplace / "held_out.jsonl"), "--output", str(again)]) == 0
    assert (read_margins(again).margins - trained).abs().max() < 1e-4
    capsys.readouterr()
    assert main(train_arguments(workplace, *four, "--output_dir", str(workplace / "refused"))) == 2
    assert "--load_in_4bit needs --use_peft True" in capsys.readouterr().err


def test_a_folder_with_another_run_is_refused_and_resume_goes_on(workplace, capsys):
    assert main(train_arguments(workplace)) == 0
    assert main(train_arguments(workplace)) == 2
    assert "holds another run" in capsys.readouterr().err
    assert main(train_arguments(workplace, "--resume_from_checkpoint", "True")) == 0


def test_yaml_options_and_flags_that_win(workplace, capsys):
    config = workplace / "options.yaml"
    config.write_text("strength: fixed\nbeta: 0.3\nmax_steps: 99\n")
    assert main(train_arguments(workplace, "--config", str(config), "--beta", "0.4")) == 0
    assert float(StrengthModel.from_pretrained(workplace / "run" / "strength").mean) == 0.4
    config.write_text("no_such_option: 1\n")
    assert main(["train", "--config", str(config)]) == 2
    assert "no_such_option" in capsys.readouterr().err


def test_inspect_shows_rows_and_the_step_0_margin(workplace, capsys):
    source = ["--model_name_or_path", str(workplace / "model"), "--dataset_name", str(workplace / "train.jsonl")]
    assert main(["inspect", *source, "--step0", "True"]) == 0
    out = capsys.readouterr().out
    assert "24 of 25 rows used" in out
    assert "'good 0" in out
    assert "largest |h| 0 nats" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown command 'nonsense'"),
        (["train", "--dataset_name", "missing.jsonl"], "missing.jsonl: no such file"),
        (["train"], "--dataset_name is missing"),
        (["posterior"], "--margins is missing"),
        (["posterior", "--margins", "missing.parquet"], "missing.parquet: no such file"),
        (["report", "--run_dir", "nowhere"], "not the folder of a run"),
        (["margins", "--policy", "a", "--num_samples", "3"], "num_samples"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


class FakeHub:
    """Stands for the hub's client."""

    endpoint = "https://hub.example"
    refused = failing = False

    def __init__(self, token=None):
        FakeHub.uploads = []

    def create_repo(self, name, private=None, exist_ok=False):
        if self.refused:
            raise OSError("no rights\nmore")
        return types.SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, *, repo_id, folder_path, **more):
        if self.failing:
            raise OSError("gone")
        FakeHub.uploads.append((repo_id, sorted(path.name for path in folder_path.iterdir()), more.get("path_in_repo")))


def test_push_to_hub_uploads_policy_and_strength_only(workplace, capsys, monkeypatch):
    monkeypatch.setattr("pluralpref.cli.hub.HfApi", FakeHub)
    push = train_arguments(workplace, "--push_to_hub", "True", "--hub_model_id", "policy-of-ours")
    assert main(push) == 0
    assert "uploaded to https://hub.example/me/policy-of-ours" in capsys.readouterr().out
    (repo, policy, _), (_, strength, inside) = FakeHub.uploads
    assert repo == "me/policy-of-ours"
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(policy)
    assert not {"metrics.jsonl", "margins.parquet", "config.yaml"} & set(policy)
    assert (inside, "strength.safetensors" in strength or "model.safetensors" in strength) == ("strength", True)
    assert yaml.safe_load((workplace / "run" / "config.yaml").read_text())["push_to_hub"] is True
    card = (workplace / "run" / "policy" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert {"pluralpref", "mixdpo", "dpo"} <= set(metadata["tags"])
    assert "LogNormalStrength(" in card.split("## Preference strength")[1]
    assert str(workplace) not in card


def test_a_hub_that_refuses_or_fails(workplace, capsys, monkeypatch):
    monkeypatch.setattr("pluralpref.cli.hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "refused", True)
    push = train_arguments(workplace, "--push_to_hub", "True")
    assert main(push) == 2
    assert "can't make or find 'run' on the hub (no rights)" in capsys.readouterr().err
    assert not list((workplace / "run").glob("checkpoint-*"))  # before training
    monkeypatch.setattr(FakeHub, "refused", False)
    monkeypatch.setattr(FakeHub, "failing", True)
    assert main([*push, "--output_dir", str(workplace / "second")]) != 0
    assert "The run is complete: upload" in capsys.readouterr().err
    assert (workplace / "second" / "margins.parquet").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hub_model_id", "x"], "--hub_model_id has no effect without --push_to_hub"),
        (["--push_to_hub", "True", "--hub_strategy", "end"], "--hub_strategy has no effect"),
        (["--max_tokens_per_batch", "0"], "max_tokens_per_batch=0: must be at least 1"),
        (["--strength", "fixed", "--strength_learning_rate", "0.1"], "--strength_learning_rate 0.1 has no effect"),
    ],
)
def test_options_without_effect(workplace, capsys, options, message):
    assert main(train_arguments(workplace, *options)) == 2
    assert message in capsys.readouterr().err


def test_options_of_a_run_hold_no_secret(workplace, monkeypatch):
    monkeypatch.setattr("pluralpref.cli.hub.HfApi", FakeHub)
    assert main(train_arguments(workplace, "--push_to_hub", "True", "--hub_token", "hf_secret")) == 0
    run = workplace / "run"
    assert "hf_secret" not in (run / "config.yaml").read_text()
    older = yaml.safe_load((run / "config.yaml").read_text()) | {"hub_token": "hf_secret"}
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    assert main(["report", "--run_dir", str(run)]) == 0
    html = (run / "report.html").read_text()
    assert "hub_token" in html
    assert "hf_secret" not in html


def test_a_first_start_that_may_resume_keeps_its_options_mappings_too(workplace):
    schedule = ["--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs", '{"num_cycles": 3}']
    processes = ["--accelerator_config", '{"even_batches": false}']
    assert main(train_arguments(workplace, *schedule, *processes, "--resume_from_checkpoint", "True")) == 0
    path = workplace / "run" / "config.yaml"
    written = path.read_text()
    options = yaml.safe_load(written)
    assert options["lr_scheduler_kwargs"] == {"num_cycles": 3}
    assert options["accelerator_config"] == {"even_batches": False}
    assert "resume_from_checkpoint" not in options
    assert main(["train", "--config", str(path), "--output_dir", str(workplace / "again")]) == 0
    again = yaml.safe_load((workplace / "again" / "config.yaml").read_text())
    assert again == options | {"output_dir": str(workplace / "again")}
    policies = [(workplace / run / "policy" / "model.safetensors").read_bytes() for run in ("run", "again")]
    assert policies[0] == policies[1]
    more = ["--max_steps", "7", "--resume_from_checkpoint", "True"]
    assert main(train_arguments(workplace, *schedule, *processes, *more)) == 0
    assert path.read_text() == written  # the options of the first start


def test_train_with_another_loss(workplace, capsys):
    assert main(train_arguments(workplace, "--strength", "fixed", "--beta", "0.5", "--loss_type", "ipo")) == 0
    first = json.loads((workplace / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(1.0, rel=1e-5)  # (0 - 1 / (2 * 0.5)) ** 2
    assert main(train_arguments(workplace, "--loss_type", "ipo", "--output_dir", str(workplace / "refused"))) == 2
    assert "one constant beta" in capsys.readouterr().err


def test_train_in_parts_by_tokens(workplace):
    assert main(train_arguments(workplace, "--max_tokens_per_batch", "40")) == 0
    assert yaml.safe_load((workplace / "run" / "config.yaml").read_text())["max_tokens_per_batch"] == 40


def test_public_data_sets_and_held_out_people(workplace, capsys):
    """Psoups' form: two of six people are held out with all their pairs."""
    rows = [
        {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}" if i else "good 0", "uid": 1 + i % 6}
        for i in range(25)
    ]
    (workplace / "psoups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The tokenizer has no chat template.
    source = ["--dataset", "psoups", "--dataset_name", str(workplace / "psoups.jsonl"), "--transcripts", "True"]
    arguments = train_arguments(workplace, "--held_out_by", "annotator", "--held_out_fraction", "0.34", *source)
    start = arguments.index("--eval_dataset_name")
    del arguments[start : start + 2]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "psoups: 24 pairs of 24 choices from 25 rows; 1 skipped" in shown
    assert "8 pairs of other values of annotator held out, 16 to train on" in shown
    held_out = set(read_margins(workplace / "run" / "margins.parquet").annotator)
    assert len(held_out) == 2
    again = yaml.safe_load((workplace / "run" / "config.yaml").read_text())
    assert (again["dataset"], again["held_out_by"]) == ("psoups", "annotator")
    for options, message in (
        (["--held_out_fraction", "0.5"], "--held_out_fraction has no effect without --held_out_by"),
        (["--held_out_by", "annotator"], "leave out --eval_dataset_name"),
        (["--dataset_options", "a=b"], "--dataset_options has no effect without --dataset"),
        ([*source, "--dataset_options", "turns=first"], "psoups has no option 'turns'"),
        ([*source, "--dataset_options", "turns"], "expected KEY=VALUE"),
        (["--dataset", "prisma"], "unknown data set 'prisma': choose"),
        (["--transcripts", "True"], "the data set is text already"),
        ([*source, "--dataset_config", "x"], "--dataset_config has no effect with --dataset"),
    ):
        assert main(train_arguments(workplace, *options, "--output_dir", str(workplace / "refused"))) == 2
        assert message in capsys.readouterr().err
    model = ["--model_name_or_path", str(workplace / "model")]
    assert main(["inspect", *model, *source, "--rows", "1"]) == 0
    assert "psoups: 24 pairs of 24 choices from 25 rows; 1 skipped" in capsys.readouterr().out
