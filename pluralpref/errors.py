"""The exceptions and warnings of pluralpref. Every one derives from the class that Python users expect to catch."""

from __future__ import annotations


class PluralPrefError(Exception):
    """Base class of every error that pluralpref raises on purpose."""


class DataError(PluralPrefError, ValueError):
    """Rows, columns or tables that can't be used; the message names them and says what to do."""


class ConfigError(PluralPrefError, ValueError):
    """An option, or a combination of options, that has no meaning or no effect."""


class UnsupportedError(PluralPrefError, NotImplementedError):
    """What was asked for is meaningful but not available for this model, family or method."""


class InferenceError(PluralPrefError, RuntimeError):
    """Inference started and could not give a result that can be trusted."""


class PluralPrefWarning(UserWarning):
    """Base class of every warning that pluralpref issues."""


class NumericsWarning(PluralPrefWarning):
    """A numerical result may be less accurate than asked for."""


class IdentificationWarning(PluralPrefWarning):
    """The data can't tell the quantities apart that are about to be reported."""


class DataWarning(PluralPrefWarning):
    """Rows were skipped or changed on the way in; the message counts them by reason."""
