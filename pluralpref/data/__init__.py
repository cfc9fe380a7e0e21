"""From a file, a hub name or a data set to tokenised preference pairs, every row accounted for."""

from pluralpref.data.collate import PreferenceCollator, padding_token
from pluralpref.data.load import load_preferences
from pluralpref.data.margins_table import MarginsTable, read_margins, write_margins
from pluralpref.data.report import RowReport
from pluralpref.data.sets import PairReport, disjoint_split, known_datasets, load_named, read_dataset
from pluralpref.data.tokenize import tokenize_preferences
from pluralpref.data.transcripts import as_transcripts

__all__ = [
    "MarginsTable",
    "PairReport",
    "PreferenceCollator",
    "RowReport",
    "as_transcripts",
    "disjoint_split",
    "known_datasets",
    "load_named",
    "load_preferences",
    "padding_token",
    "read_dataset",
    "read_margins",
    "tokenize_preferences",
    "write_margins",
]
