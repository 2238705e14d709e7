"""What the accounts tell: a word to a worker, and how they stand to whoever drives the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from phospho_multimodal.batch.journal.steps import State
from phospho_multimodal.errors import PhosphoError
from phospho_multimodal.spending.budget import SpendingSnapshot

__all__ = ["Answered", "Snapshot", "Word"]


class Word(Enum):
    """What a worker is told."""

    GO = "go"
    STOP = "stop"
    """Nothing more is asked."""
    FENCED = "fenced"
    """You were taken for dead: say hello anew."""
    CLAIM = "claim"
    """The picture is not yours any more: claim it again."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The picture needs no question: all that is known about it."""

    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The accounts at one moment.

    Attributes:
        money: What was billed by all runs, what is in doubt, what is under way.
        done: Rows of this run, by their state.
        duplicates: Rows of this run whose picture was asked about elsewhere.
        answers: Questions of this run that came to their end.
        workers: How many are alive, as far as is known.
        stopped_by: The error that ended the run, if one did.
    """

    money: SpendingSnapshot
    done: Mapping[State, int]
    duplicates: int
    answers: int
    workers: int
    stopped_by: PhosphoError | None

    def __str__(self) -> str:
        told = f"{self.answers:,} questions answered or failed; {self.money}"
        return told if self.stopped_by is None else f"{told}; stopped: {self.stopped_by}"
