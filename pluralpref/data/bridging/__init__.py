"""Bridging: which answers people of different viewpoints agree on, from who chose or rated what."""

from pluralpref.data.bridging.bounds import intercept_bounds
from pluralpref.data.bridging.factorization import Factorization, factorize
from pluralpref.data.bridging.pairs import BridgingPairs, bridging_pairs
from pluralpref.data.bridging.parameters import Parameters
from pluralpref.data.bridging.ratings import Item, Ratings
from pluralpref.data.bridging.selection import with_enough_ratings
from pluralpref.data.bridging.sources import load_ratings, ratings_from_preferences, ratings_from_table
from pluralpref.data.bridging.tables import annotator_rows, item_rows, write_rows
from pluralpref.data.bridging.validation import HeldOutError, held_out_error

__all__ = [
    "BridgingPairs",
    "Factorization",
    "HeldOutError",
    "Item",
    "Parameters",
    "Ratings",
    "annotator_rows",
    "bridging_pairs",
    "factorize",
    "held_out_error",
    "intercept_bounds",
    "item_rows",
    "load_ratings",
    "ratings_from_preferences",
    "ratings_from_table",
    "with_enough_ratings",
    "write_rows",
]
