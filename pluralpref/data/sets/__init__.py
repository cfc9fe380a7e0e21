"""Public data sets of preferences as pairs, with people's ids, groups and weights; one file each."""

from pluralpref.data.sets.pair_report import PairReport
from pluralpref.data.sets.registry import known_datasets, load_named, read_dataset
from pluralpref.data.sets.splits import disjoint_split

__all__ = ["PairReport", "disjoint_split", "known_datasets", "load_named", "read_dataset"]
