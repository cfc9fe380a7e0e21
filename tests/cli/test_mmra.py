"""The command ``pluralpref mmra``, on a run of ``pluralpref em-dpo``."""

import json

import pytest
import torch

from pluralpref.cli.em_dpo import main as em_dpo
from pluralpref.cli.mmra import main
from pluralpref.cli.options import load_model
from pluralpref.errors import ConfigError, DataError
from pluralpref.evaluation.win_rate import load_prompts, read_answers

pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, make_workplace):
    """A finished run of two classes, and prompts."""
    rows = [
        {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "annotator": f"p{i % 4}"} for i in range(12)
    ]
    prompts = [{"prompt": f"q{i}"} for i in range(5)] + [{"prompt": " "}, {"prompt": "longer than the others are"}]
    folder = make_workplace(tmp_path_factory.mktemp("mmra"), train=rows, prompts=prompts)
    arguments = [
        "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "train.jsonl"),
        "--output_dir", str(folder / "run"), "--num_classes", "2", "--iterations", "1", "--beta", "0.5",
        "--max_steps", "8", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2", "--report_to", "none",
        "--use_cpu", "True", "--disable_tqdm", "True", "--save_strategy", "no",
    ]  # fmt: skip
    assert em_dpo(arguments) == 0
    return folder


def arguments(folder, *more):
    return [
        "--run_dir", str(folder / "run"), "--prompts", str(folder / "prompts.jsonl"), "--max_new_tokens", "5",
        "--max_prompt_length", "10", "--use_cpu", "True", *more,
    ]  # fmt: skip


def test_a_run(workplace, capsys):
    capsys.readouterr()
    assert main(arguments(workplace)) == 0
    shown = capsys.readouterr().out
    folder = workplace / "run" / "mmra"
    record = json.loads((folder / "mmra.json").read_text())
    assert sum(record["weights"]) == pytest.approx(1)
    regrets, weights = torch.tensor(record["regrets"]), torch.tensor(record["weights"])
    assert record["regret"] == pytest.approx((regrets @ weights).tolist(), abs=1e-6)
    assert record["worst"] == pytest.approx(max(0.0, max(record["regret"])), abs=1e-6)
    assert all(record["worst"] <= value + 1e-9 for value in record["alternatives"].values())
    assert set(record["alternatives"]) == {"the classes' shares", "class 1 alone", "class 2 alone"}
    assert record["prompts"] == {"used": 5, "left_out": {"prompt_too_long": 1}}
    assert record["rows"]["skipped"] == {"empty_prompt": 1}
    assert record["reference"] == str(workplace / "model")
    assert f"greatest regret: {record['worst']:.3f} nats" in shown
    assert "5 prompts, 1 left out (prompt_too_long)" in shown
    prompts, _ = load_prompts(workplace / "prompts.jsonl")
    assert sum(a.answer is not None for a in read_answers(folder / "answers-mixture.jsonl", prompts)) == 5
    # Again, with other weights of the classes: the answers are there, the mixture is another.
    before = (folder / "answers-class-1.jsonl").stat().st_mtime_ns
    assert main(arguments(workplace, "--regret_weights", "1", "50")) == 0
    assert (folder / "answers-class-1.jsonl").stat().st_mtime_ns == before
    again = json.loads((folder / "mmra.json").read_text())
    assert again["regrets"] == record["regrets"]
    assert again["weights"][1] >= record["weights"][1]


def test_adapters(workplace, capsys):
    pytest.importorskip("peft")
    run = workplace / "adapters"
    more = ["--use_peft", "True", "--lora_r", "2", "--output_dir", str(run), "--max_steps", "2"]
    config = str(workplace / "run" / "config.yaml")
    assert em_dpo(["--config", config, *more]) == 0
    assert main(arguments(workplace, "--run_dir", str(run))) == 0
    assert json.loads((run / "mmra" / "mmra.json").read_text())["reference"] == str(workplace / "model")


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--run_dir", "nowhere"], DataError, "no run of EM-DPO"),
        (["--regret_weights", "1"], ConfigError, "2 positive numbers"),
        (["--max_new_tokens", "0"], ConfigError, "max_new_tokens=0"),
        (["--batch_size", "0"], ConfigError, "batch_size=0"),
        (["--dtype", "int8"], ConfigError, "--dtype int8"),
        (["--prompts", "nowhere.jsonl"], (ConfigError, DataError), "nowhere.jsonl"),
    ],
)
def test_options_refused(workplace, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        main(arguments(workplace, "--output_dir", str(tmp_path / "refused"), *more))
    assert not (tmp_path / "refused" / "mmra.json").exists()


def test_the_reference_is_asked_for_where_nothing_names_it(workplace, tmp_path):
    options = workplace / "run" / "config.yaml"
    hidden = options.rename(tmp_path / "config.yaml")
    try:
        with pytest.raises(ConfigError, match="--ref_model_name_or_path is missing"):
            main(arguments(workplace))
    finally:
        hidden.rename(options)


def test_the_reference_has_the_runs_revision(workplace, tmp_path, monkeypatch):
    options = workplace / "run" / "config.yaml"
    text = options.read_text()
    seen = []

    def spy(source, name=None):
        seen.append((name, source.model_revision))
        return load_model(source, name)

    monkeypatch.setattr("pluralpref.cli.mmra.load_model", spy)
    try:
        options.write_text(text + "model_revision: step3000\n")
        assert main(arguments(workplace, "--output_dir", str(tmp_path / "out"))) == 0
    finally:
        options.write_text(text)
    assert {revision for name, revision in seen if name == str(workplace / "model")} == {"step3000"}
    assert {revision for name, revision in seen if name != str(workplace / "model")} == {"main"}
    assert json.loads((tmp_path / "out" / "mmra.json").read_text())["reference_revision"] == "step3000"
    with pytest.raises(ConfigError, match="--model_revision has no effect"):
        main(arguments(workplace, "--model_revision", "main"))


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "Example: pluralpref mmra --run_dir run" in " ".join(capsys.readouterr().out.split())
