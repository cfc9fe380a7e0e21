"""Tables of margins that ``train`` and ``margins`` write: whose columns they may hold, and in which precision."""

import json

import pytest
import torch

from pluralpref.cli.main import main
from pluralpref.data import read_margins


@pytest.fixture
def workplace(tmp_path, make_workplace):
    """A folder with a model and pairs."""
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    return make_workplace(tmp_path, pairs=rows)


def train(folder, *more):
    return main([
        "train", "--model_name_or_path", str(folder / "model"), "--dataset_name", str(folder / "pairs.jsonl"),
        "--eval_dataset_name", str(folder / "pairs.jsonl"), "--output_dir", str(folder / "run"), "--max_steps", "1",
        "--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu", "True", "--disable_tqdm", "True",
        "--save_strategy", "no", *more,
    ])  # fmt: skip


@pytest.mark.parametrize("precompute", ["True", "False"])
def test_an_untrained_policy_in_16_bits_has_no_margins(workplace, precompute):
    """Policy and reference are scored in one precision: equal weights give 0."""
    more = ["--bf16", "True", "--precompute_ref_log_probs", precompute, "--learning_rate", "1e-30"]
    assert train(workplace, *more) == 0
    margins = read_margins(workplace / "run" / "margins.parquet").margins
    assert torch.equal(margins, torch.zeros_like(margins))


@pytest.mark.parametrize("name", ["margin", "margins", "chosen_logps", "rejected_rewards"])
def test_a_column_that_the_table_has_for_itself_is_refused_before_anything_is_done(workplace, capsys, name):
    rows = [json.loads(line) | {name: 99.0} for line in (workplace / "pairs.jsonl").read_text().splitlines()]
    (workplace / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert train(workplace) == 2
    assert f"column '{name}'" in capsys.readouterr().err
    assert not (workplace / "run").exists()
    arguments = ["--policy", str(workplace / "model"), "--reference", str(workplace / "model")]
    output = workplace / "m.parquet"
    assert main(["margins", *arguments, "--dataset_name", str(workplace / "pairs.jsonl"), "--output", str(output)]) == 2
    assert f"column '{name}'" in capsys.readouterr().err
    assert not output.exists()
