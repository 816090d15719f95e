"""`Experiment`: a table or figure of a paper as a value; `Drawing`: the base of what is drawn of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..data import Dataset
from ..shown import Card, Shown
from .made import Made
from .parts import COUPS, ROLES, Defence, Images, Job, Row
from .settings import Setting


class Drawing(ABC):
    """A figure, or a table of something else than accuracy. Final subclasses are frozen dataclasses."""

    name: str
    """Of its files, without the ending; letters, digits and hyphens."""

    @abstractmethod
    def draw(self, made: Made) -> Mapping[str, bytes]:
        """Names and contents of its files; none, with a note, where there is nothing to show.

        What costs more than a second is kept in ``made.kept``, so that a killed command need not do it again.
        """

    def calls(self, setting: Setting, images: int) -> int:
        """Network calls, at most; 0 for a drawing of what the runs hold."""
        return 0

    @property
    def defences(self) -> tuple[Defence, ...]:
        """Defences it asks, beside those of the rows."""
        return ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Networks it asks (see `ROLES`), beside those of its defences."""
        return ()

    def speed(self, setting: Setting, dataset: Dataset) -> float:
        """Seconds of one of its network calls, measured on ``dataset``; 0 where a defence's calls say it."""
        return 0.0


@final
@dataclass(frozen=True, repr=False)
class Experiment(Shown):
    """A table or figure of a paper.

    Attributes:
        name: as in ``fastpure reproduce NAME``.
        paper: authors, year, where.
        title: which table or figure, and what it shows.
        rows: of its table.
        drawings: its figures.
        images: which it takes.
        notes: what else a reader must know.
        small_label: what its small numbers are numbers of, where that is not bundled networks.
    """

    name: str
    paper: str
    title: str
    rows: tuple[Row, ...]
    drawings: tuple[Drawing, ...] = ()
    images: Images = COUPS
    notes: tuple[str, ...] = ()
    small_label: str = ""

    def _shown(self) -> Card:
        return Card(
            f"Experiment {self.name}: {self.title}",
            (
                ("paper", self.paper),
                ("rows", ", ".join(dict.fromkeys(row.defence.label for row in self.rows)) or "none"),
                ("figures", ", ".join(drawing.name for drawing in self.drawings) or "none"),
            ),
            tuple(("note", note) for note in self.notes),
        )

    def label(self, setting: Setting) -> str:
        """What its numbers are numbers of."""
        if setting.small and self.small_label:
            return self.small_label
        return (
            setting.label if self.roles else "closed form, no network and no images: the same in both sizes"
        )

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every run, those whose images others need first."""
        found = [job for row in self.rows for job in row.runs]
        return tuple(sorted(found, key=lambda job: job.row.source is not None))

    @property
    def defences(self) -> tuple[Defence, ...]:
        """All of them, each once."""
        drawn = [defence for drawing in self.drawings for defence in drawing.defences]
        return tuple(dict.fromkeys([*(row.defence for row in self.rows), *drawn]))

    @property
    def roles(self) -> dict[str, str]:
        """The networks it needs: role -> the published network."""
        named = {role for defence in self.defences for role in defence.roles}
        named |= {role for drawing in self.drawings for role in drawing.roles}
        return {role: ROLES[role].what for role in ROLES if role in named}
