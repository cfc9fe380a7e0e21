"""A simulated population of annotators whose preference strength is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TOPICS = ("weather", "cooking", "travel", "music")
WORDS = (
    "brief", "kind", "exact", "funny", "formal", "warm", "sourced", "vivid", "plain", "bold", "calm", "playful",
)  # fmt: skip
ANSWER_WORDS = 6
CHOICES_PER_ANNOTATOR = 10


@dataclass(frozen=True)
class Population:
    r"""Annotators who agree on what is better and differ in how much it matters to them.

    An answer is six words; its utility is the sum of a value for each (topic, word). Annotator a chooses by
    :math:`P(y_w \succ y_l) = \sigma(\beta_a \Delta u)`, :math:`\beta_a` log-normal with mean 1 and the given cv.

    :param cv: the true coefficient of variation; 0 gives everybody the strength 1.
    :param seed: of the utilities and of every draw.
    """

    cv: float
    seed: int = 0

    def utilities(self) -> np.ndarray:
        """Value of each word for each topic, shape (topics, words), the same for every ``cv``."""
        return np.random.default_rng(self.seed).normal(size=(len(TOPICS), len(WORDS))) * 0.8

    def choices(self, annotators: int, stream: int) -> Dataset:
        """Ten choices of each of ``annotators`` people.

        :param stream: separates training from held-out people.
        :returns: columns prompt, chosen, rejected, annotator.
        """
        rng = np.random.default_rng([self.seed, stream, round(1000 * self.cv)])
        values = self.utilities()
        sigma = np.sqrt(np.log1p(self.cv**2))
        strength = np.exp(rng.normal(-(sigma**2) / 2, sigma, size=annotators)) if self.cv else np.ones(annotators)
        rows: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": [], "annotator": []}
        for person in range(annotators):
            for _ in range(CHOICES_PER_ANNOTATOR):
                topic = rng.integers(len(TOPICS))
                first, second = rng.integers(len(WORDS), size=(2, ANSWER_WORDS))
                gap = values[topic, first].sum() - values[topic, second].sum()
                if rng.random() > 1 / (1 + np.exp(-strength[person] * gap)):
                    first, second = second, first
                rows["prompt"].append(TOPICS[topic])
                rows["chosen"].append(" ".join(WORDS[i] for i in first))
                rows["rejected"].append(" ".join(WORDS[i] for i in second))
                rows["annotator"].append(f"{'train' if stream == 0 else 'held-out'}-{person}")
        return Dataset.from_dict(rows)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the demo's language."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<eos>", "<unk>", *TOPICS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
