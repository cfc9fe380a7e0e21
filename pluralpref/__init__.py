"""Probabilistic programming for preference strength: DPO with a learned distribution of beta.

Import what you need from the subpackages; this module itself imports nothing heavy.

- :mod:`pluralpref.models`: Pyro models of preference strength
- :mod:`pluralpref.likelihood`: log-probabilities and margins from a causal language model
- :mod:`pluralpref.data`: preference datasets to preference pairs
- :mod:`pluralpref.inference`: marginalisation, objectives, the trainer, posterior inference
- :mod:`pluralpref.diagnostics`: ArviZ data, figures, the report
- :mod:`pluralpref.evaluation`: held-out metrics
"""

from pluralpref._version import __version__

__all__ = ["__version__"]
