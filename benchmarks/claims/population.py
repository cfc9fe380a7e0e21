"""People whose utilities and strengths are known, and who differ in one way at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from pluralpref.demo.population import ANSWER_WORDS, TOPICS, WORDS

KINDS = ("strength", "direction", "noise")
#: How many choices a person makes, and the share of the people who make so many: 10 in the mean.
CHOICES = {5: 2 / 3, 20: 1 / 3}
#: Share of the people in the smaller group, who want something else where directions differ.
MINORITY = 0.3


@dataclass(frozen=True)
class Population:
    r"""Annotators of two groups who choose between answers of six words by :math:`\sigma(\beta_a \Delta u_a)`, then err.

    - ``kind="strength"``: :math:`\beta_a` log-normal with mean 1 and cv ``level``; utilities are everybody's.
    - ``kind="direction"``: the smaller group's utilities are :math:`(1 - \lambda) u + \lambda u'` (rescaled to the variance of u)
      with :math:`\lambda` = ``level`` and :math:`u'` independent of u; strengths are 1.
    - ``kind="noise"``: a share ``level`` of the choices is reversed; strengths are 1, utilities everybody's.

    Level 0 is the same population whatever the kind.

    :param seed: of utilities and draws.
    """

    kind: str
    level: float
    seed: int

    def utilities(self) -> np.ndarray:
        """Each word's value for each topic and group, (groups, topics, words)."""
        rng = np.random.default_rng(self.seed)
        common, other = 0.8 * rng.normal(size=(2, len(TOPICS), len(WORDS)))
        share = self.level if self.kind == "direction" else 0.0
        second = ((1 - share) * common + share * other) / np.hypot(1 - share, share)
        return np.stack([common, second])

    def people(self, count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """(strength, group) of ``count`` people."""
        rng = np.random.default_rng([self.seed, stream, 1])
        groups = (rng.random(count) < MINORITY).astype(int)
        cv = self.level if self.kind == "strength" else 0.0
        sigma = np.sqrt(np.log1p(cv**2))
        return np.exp(sigma * rng.normal(size=count) - sigma**2 / 2), groups

    def choices(self, count: int, stream: int) -> Dataset:
        """The choices of ``count`` people, five or twenty of each: prompt, chosen, rejected, annotator, group.

        :param stream: other people.
        """
        strengths, groups = self.people(count, stream)
        rng = np.random.default_rng([self.seed, stream, 2])
        values = self.utilities()
        person = np.repeat(np.arange(count), rng.choice(list(CHOICES), size=count, p=list(CHOICES.values())))
        topic = rng.integers(len(TOPICS), size=len(person))
        words = rng.integers(len(WORDS), size=(2, len(person), ANSWER_WORDS))
        utility = values[groups[person], topic][np.arange(len(person))[None, :, None], words].sum(-1)
        wins = rng.random(len(person)) < _sigmoid(strengths[person] * (utility[0] - utility[1]))
        wins ^= rng.random(len(person)) < (self.level if self.kind == "noise" else 0.0)
        chosen, rejected = np.where(wins[:, None], words, words[::-1])
        return Dataset.from_dict(
            {
                "prompt": [TOPICS[i] for i in topic],
                "chosen": [text(row) for row in chosen],
                "rejected": [text(row) for row in rejected],
                "annotator": [f"{stream}-{i}" for i in person],
                "group": [("larger", "smaller")[groups[i]] for i in person],
            }
        )

    def win_rate(self, topic: np.ndarray, answers: np.ndarray, others: np.ndarray, stream: int) -> dict[str, float]:
        """How often people would prefer ``answers`` to ``others``, (answers, words) of word counts, by their true utilities.

        :returns: ``all`` and the two groups, choices without error; means over people drawn anew and over answers.
        """
        strengths, groups = self.people(400, stream)
        gaps = np.einsum("gaw,aw->ga", self.utilities()[:, topic], answers - others)
        chance = _sigmoid(strengths[:, None] * gaps[groups])
        found = {"all": float(chance.mean())}
        for number, name in enumerate(("larger", "smaller")):
            found[name] = float(chance[groups == number].mean())
        return found


def text(words: np.ndarray) -> str:
    return " ".join(WORDS[i] for i in words)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
