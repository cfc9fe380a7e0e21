"""Which of two policies a judge prefers: answers, verdicts in both orders, win rate."""

from pluralpref.evaluation.win_rate.answers import Answer, read_answers
from pluralpref.evaluation.win_rate.callable_judge import CallableJudge
from pluralpref.evaluation.win_rate.endpoint import ChatEndpoint
from pluralpref.evaluation.win_rate.endpoint_judge import EndpointJudge
from pluralpref.evaluation.win_rate.generate import GenerationOptions, generate_answers
from pluralpref.evaluation.win_rate.judge import Comparison, Judge, Verdict
from pluralpref.evaluation.win_rate.prompts import Prompt, load_prompts
from pluralpref.evaluation.win_rate.reward_judge import RewardModelJudge
from pluralpref.evaluation.win_rate.summary import Estimate, WinRateSummary, summarize
from pluralpref.evaluation.win_rate.verdicts import Pair, collect_verdicts, make_pairs

__all__ = [
    "Answer",
    "CallableJudge",
    "ChatEndpoint",
    "Comparison",
    "EndpointJudge",
    "Estimate",
    "GenerationOptions",
    "Judge",
    "Pair",
    "Prompt",
    "RewardModelJudge",
    "Verdict",
    "WinRateSummary",
    "collect_verdicts",
    "generate_answers",
    "load_prompts",
    "make_pairs",
    "read_answers",
    "summarize",
]
