"""From a file, a hub name or a data set to tokenised preference pairs, every row accounted for."""

from pluralpref.data.collate import PreferenceCollator, padding_token
from pluralpref.data.load import load_preferences
from pluralpref.data.margins_table import MarginsTable, read_margins, write_margins
from pluralpref.data.report import RowReport
from pluralpref.data.tokenize import tokenize_preferences

__all__ = [
    "MarginsTable",
    "PreferenceCollator",
    "RowReport",
    "load_preferences",
    "padding_token",
    "read_margins",
    "tokenize_preferences",
    "write_margins",
]
