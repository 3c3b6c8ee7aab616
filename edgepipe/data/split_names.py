"""The names of the three splits, in a module without numpy, which checking and a cached run do not need."""

from enum import StrEnum


class Split(StrEnum):
    """What a sample is used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


FITTING_SPLITS = frozenset({Split.TRAIN, Split.VALIDATION})  # available to every stage before `validate`
