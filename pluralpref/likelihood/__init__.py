"""The neural likelihood: from a language or reward model and tokens to margins, in nats."""

from pluralpref.likelihood.dropout import DropoutSwitch, disable_dropout, no_dropout
from pluralpref.likelihood.embeddings import answer_embeddings
from pluralpref.likelihood.frozen_parts import FrozenParts, trains_a_part
from pluralpref.likelihood.logprobs import answer_logps
from pluralpref.likelihood.margins import PairLogps, log_ratio_margins, pair_logps
from pluralpref.likelihood.reference import frozen_copy, precompute_reference, reference_pair_logps
from pluralpref.likelihood.reward import NO_REFERENCE, is_reward_model
from pluralpref.likelihood.score import score_margins

__all__ = [
    "NO_REFERENCE",
    "DropoutSwitch",
    "FrozenParts",
    "PairLogps",
    "answer_embeddings",
    "answer_logps",
    "disable_dropout",
    "frozen_copy",
    "is_reward_model",
    "log_ratio_margins",
    "no_dropout",
    "pair_logps",
    "precompute_reference",
    "reference_pair_logps",
    "score_margins",
    "trains_a_part",
]
