"""Rewards of pairs, against the classifiers' own forward one row at a time."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForSequenceClassification,
)

from pluralpref.data import PreferenceCollator
from pluralpref.errors import ConfigError, UnsupportedError
from pluralpref.likelihood import NO_REFERENCE, is_reward_model, pair_logps, score_margins
from pluralpref.likelihood.causal_lm import own_logits
from pluralpref.likelihood.reward import pair_rewards

SIZES = {"vocab_size": 60, "num_labels": 1, "pad_token_id": 0}


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, **sizes))


def gpt2():
    return GPT2ForSequenceClassification(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def bert():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**SIZES, **sizes))


def roberta(kind=RobertaForSequenceClassification, **options):
    """Counts positions from the padding token's id + 1."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Positions that matter beside rounding, which those of a freshly built model hardly do.
    return kind(RobertaConfig(**{**SIZES, **options}, **sizes, initializer_range=0.5))


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert, "roberta": roberta}


def make(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def rows():
    torch.manual_seed(1)
    lengths = [(5, 4, 2), (3, 1, 7), (9, 6, 6)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [dict(zip(names, (torch.randint(1, 60, (n,)).tolist() for n in one), strict=True)) for one in lengths]


@pytest.mark.parametrize("name", MODELS)
def test_rewards_are_the_models_own(name):
    model, pairs = make(name), rows()
    assert is_reward_model(model)
    found = pair_logps(model, PreferenceCollator(0)(pairs))
    for i, pair in enumerate(pairs):
        for side, reward in (("chosen_ids", found.chosen), ("rejected_ids", found.rejected)):
            expected = model(torch.tensor([pair["prompt_ids"] + pair[side]])).logits[0, 0]
            assert float(reward[i].detach()) == pytest.approx(float(expected.detach()), abs=2e-6)


def padded(texts, fill, left):
    """(ids, mask), padded with ``fill`` on one side."""
    width = max(map(len, texts))
    ids, mask = [], []
    for text in texts:
        blank = width - len(text)
        ids.append([fill] * blank + text if left else text + [fill] * blank)
        mask.append([0] * blank + [1] * len(text) if left else [1] * len(text) + [0] * blank)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_rewards_whichever_side_is_padded(name, left):
    """With the model's own padding token or another one."""
    model = make(name)
    texts = [pair["prompt_ids"] + pair["chosen_ids"] for pair in rows()]
    expected = torch.cat([model(torch.tensor([text])).logits[:, 0] for text in texts])
    for fill in (0, 7):
        ids, mask = padded(texts, fill, left)
        found = pair_rewards(model, {"input_ids": ids, "attention_mask": mask})
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_positions_of_a_padding_token_within_a_text_are_the_models_own(left):
    """Models of RoBERTa's kind don't count it, be they classifiers or decoders."""
    torch.manual_seed(0)
    texts = [[5, 6, 3, 8, 9], [4, 3, 7]]
    reward = roberta(pad_token_id=3).eval()
    decoder = roberta(RobertaForCausalLM, is_decoder=True, pad_token_id=3).eval()
    ids, mask = padded(texts, 3, left)
    rewards = pair_rewards(reward, {"input_ids": ids, "attention_mask": mask})
    logits = own_logits(decoder, ids, mask)
    for i, text in enumerate(texts):
        alone = torch.tensor([text])
        torch.testing.assert_close(rewards[i].float(), reward(alone).logits[0, 0], rtol=0, atol=2e-6)
        torch.testing.assert_close(logits[i][mask[i].bool()], decoder(alone).logits[0], rtol=1e-5, atol=1e-5)


def test_a_text_that_ends_with_the_padding_token():
    """Its reward is that of its own last token, alone and beside longer ones."""
    model, pairs = make("llama"), rows()
    ended = {**pairs[0], "chosen_ids": [*pairs[0]["chosen_ids"], 0]}
    alone, beside = (pair_logps(model, PreferenceCollator(0)(batch)) for batch in ([ended], [ended, pairs[2]]))
    torch.testing.assert_close(alone.chosen[0], beside.chosen[0], rtol=0, atol=2e-6)
    hidden = model.model(torch.tensor([ended["prompt_ids"] + ended["chosen_ids"]]))[0][0, -1]
    torch.testing.assert_close(alone.chosen[0].float(), model.score(hidden)[0], rtol=0, atol=2e-6)


def test_margins_of_a_data_set():
    from datasets import Dataset

    model, pairs = make("llama"), rows()
    scores = score_margins(model, NO_REFERENCE, Dataset.from_list(pairs), PreferenceCollator(0), progress=False)
    torch.testing.assert_close(scores["margins"], scores["chosen_logps"] - scores["rejected_logps"])
    assert (scores["ref_chosen_logps"] == 0).all()


def test_what_is_refused():
    model = llama()
    model.config.num_labels = 3
    with pytest.raises(UnsupportedError, match="has 3 labels"):
        is_reward_model(model)
    with pytest.raises(ConfigError, match="attn_layout='shared' has no effect on a reward model"):
        pair_logps(make("llama"), PreferenceCollator(0)(rows()), attn_layout="shared")
