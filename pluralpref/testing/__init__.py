"""What users run on their own strength families: a test case to inherit from."""

from pluralpref.testing.strength import StrengthModelTests

__all__ = ["StrengthModelTests"]
