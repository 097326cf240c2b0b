"""Verdict: what verifying a model found, as data, as JSON and as tables."""

import dataclasses
from typing import Any

from jaxinterp.model.sites import SITES
from jaxinterp.views import Section, View, report, table


@dataclasses.dataclass(frozen=True)
class Check:
    """One identity, and how far the model is from it.

    Attributes:
        name: of the identity.
        ok: whether it holds.
        measured: the number it is judged by, None where the check does not apply.
        bound: the number beyond which it does not hold.
        note: what was measured, or why nothing was.
    """

    name: str
    ok: bool
    measured: float | None
    bound: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class SiteError:
    """How far a site is from the reference.

    Attributes:
        site: its name.
        kind: "value", or "gradient" of a metric with respect to the site.
        layer: the layer of the worst token, None for sites outside the blocks.
        prompt, position: the worst token.
        error: ||ours - reference|| / ||reference|| of that token, the largest of all.
        bound: what it may be.
        first_layer: the lowest layer that has a token beyond the bound, or None.
    """

    site: str
    kind: str
    layer: int | None
    prompt: int
    position: int
    error: float
    bound: float
    first_layer: int | None = None

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `ji.verify` found.

    Attributes:
        model: what was verified.
        checks: identities that need no reference.
        sites: errors against the reference, in the order of the forward pass, gradients last; empty without one.
        reference: what the model was compared with, or why it was not.
        first: the first wrong thing in forward order, in one sentence; "" where nothing is wrong.
        about: dtype, versions.
    """

    model: str
    checks: tuple[Check, ...]
    sites: tuple[SiteError, ...]
    reference: str
    first: str
    about: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether everything that was checked holds."""
        return all(check.ok for check in self.checks) and all(site.ok for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        sites = [dataclasses.asdict(site) | {"ok": site.ok} for site in self.sites]
        return {"ok": self.ok} | dataclasses.asdict(self) | {"sites": sites}

    def view(self) -> View:
        """The tables."""
        checks = {
            "identity": ("text", [check.name for check in self.checks]),
            "": ("text", [_mark(check) for check in self.checks]),
            "measured": ("text", [_size(check.measured) for check in self.checks]),
            "bound": ("text", [_size(check.bound) for check in self.checks]),
            "what": ("text", [check.note for check in self.checks]),
        }
        parts = [Section("Identities", "", (table("", checks),))]
        rows = {
            "site": ("text", [site.site if site.kind == "value" else f"d metric / d {site.site}" for site in self.sites]),
            "": ("text", ["ok" if site.ok else "WRONG" for site in self.sites]),
            "error": ("text", [_size(site.error) for site in self.sites]),
            "bound": ("text", [_size(site.bound) for site in self.sites]),
            "worst token": ("text", [_where(site) for site in self.sites]),
        }
        parts.append(Section("Against the reference", self.reference, (table("", rows),) if self.sites else ()))
        parts.append(Section("Verdict", "Nothing is wrong." if self.ok else f"Wrong: {self.first}"))
        return report(f"verify {self.model}", parts, provenance=self.about)

    def __str__(self) -> str:
        return f"{self.model}: {'nothing is wrong' if self.ok else 'wrong: ' + self.first}"


def _mark(check: Check) -> str:
    return "–" if check.measured is None and check.ok else "ok" if check.ok else "WRONG"


def _size(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.2g}" if 1e-2 <= abs(value) < 1e4 else f"{value:.1e}"


def _where(site: SiteError) -> str:
    layer = "" if site.layer is None else f"layer {site.layer}, "
    token = "" if SITES[site.site].axes == "BD" else f", token {site.position}"
    return f"{layer}prompt {site.prompt}{token}"
