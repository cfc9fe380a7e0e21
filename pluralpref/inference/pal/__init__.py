"""PAL: reward models of people who are mixtures of a few prototypes, on top of frozen embeddings (arXiv:2406.08469)."""

from pluralpref.inference.pal.config import PalConfig
from pluralpref.inference.pal.data import PalPairs, hold_out_choices, pal_pairs
from pluralpref.inference.pal.few_shot import FewShot, predict_few_shot, split_people
from pluralpref.inference.pal.fit import fit_pal
from pluralpref.inference.pal.model import Pal
from pluralpref.inference.pal.person import fit_person
from pluralpref.inference.pal.predict import ChoiceLogProbs, predict_known, predict_unknown, predict_with
from pluralpref.inference.pal.saving import load_pal, save_pal

__all__ = [
    "ChoiceLogProbs",
    "FewShot",
    "Pal",
    "PalConfig",
    "PalPairs",
    "fit_pal",
    "fit_person",
    "hold_out_choices",
    "load_pal",
    "pal_pairs",
    "predict_few_shot",
    "predict_known",
    "predict_unknown",
    "predict_with",
    "save_pal",
    "split_people",
]
