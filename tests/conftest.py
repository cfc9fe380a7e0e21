"""Fixtures that several packages' tests share. Nothing here reaches for the network."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level tokeniser with 258 entries, built in memory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([""], trainer)
    assert tokenizer.get_vocab_size() == 258
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def quick_collection():
    """transformers collects garbage after every training: what was imported needn't be looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_llama():
    """A factory of two-layer Llamas: the same seed gives the same weights."""

    def build(seed=0, **overrides):
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = {
            "vocab_size": 300,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
            "dtype": "float32",
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))

    return build


@pytest.fixture(scope="session")
def tiny_gpt2():
    """A factory of two-layer GPT-2s, with dropout of every kind where it's asked for."""

    def build(seed=0, dropout=0.0, **overrides):
        from transformers import GPT2Config, GPT2LMHeadModel

        settings = {
            "vocab_size": 300,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "resid_pdrop": dropout,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GPT2LMHeadModel(GPT2Config(**{**settings, **overrides}))

    return build


@pytest.fixture(scope="session")
def pairs():
    """A factory of small data sets of preference pairs, by two annotators in turn."""

    def build(count=8):
        from datasets import Dataset

        return Dataset.from_list(
            [
                {
                    "prompt": f"Question {i}?",
                    "chosen": " Yes" + "!" * (i % 4),
                    "rejected": f" No, {i} times no.",
                    "annotator": ("ann", "bob")[i % 2],
                }
                for i in range(count)
            ]
        )

    return build


@pytest.fixture(scope="session")
def hh_file():
    """HH-RLHF's harmless-base test split, named by PLURALPREF_HH_FILE or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "hh_harmless_base_test.jsonl.gz"
    path = Path(os.environ.get("PLURALPREF_HH_FILE", beside))
    if not path.is_file():
        pytest.skip("HH-RLHF harmless-base test split not found: set PLURALPREF_HH_FILE to the .jsonl.gz file")
    return path


@pytest.fixture
def short_training(tmp_path):
    """Options of a training run of four steps that writes little and learns visibly."""
    return {
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "strength_learning_rate": 0.05,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
