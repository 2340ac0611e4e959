"""The options of the loss: which implementation computes it, and how exact its backward is."""

from dataclasses import dataclass
from numbers import Real
from typing import Literal, SupportsIndex, get_args

ImplementationName = Literal["auto", "reference", "blocked", "triton"]
Preset = Literal["default", "exact"]
FilterEps = float | Literal["auto"] | None

DEFAULT_FILTER_EPS = 2.0**-12
"""A bf16 product does not see a probability below this (arXiv:2411.09009, section 3.3)."""

REPLACEMENTS = {
    "cce": "LossConfig()",
    "cce_kahan": "LossConfig()",
    "cce_kahan_full_e": "LossConfig()",
    "cce_kahan_full_c": "LossConfig()",
    "cce_kahan_full_c_full_e": "LossConfig(preset='exact')",
    "cce_exact": "LossConfig(preset='exact')",
    "torch_compile": "LossConfig(implementation='blocked')",
}
"""What callers of cut_cross_entropy ask for by `impl=`, and our words for it."""


def check_kind(name: str, value: object, kind: type, words: str) -> None:
    """Raise TypeError unless `value` is of a kind, which `words` name."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {words}; got {value!r}")


def choice_error(name: str, got: object, allowed: tuple[str, ...]) -> ValueError:
    """The error for a word that is not among `allowed`."""
    words = ", ".join(map(repr, allowed))
    return ValueError(f"{name} must be one of {words}; got {got!r}{replacement(got)}")


def replacement(name: object) -> str:
    """What to pass instead of one of cut_cross_entropy's names, as the end of a message."""
    word = str(getattr(name, "name", name)).lower()  # theirs may be a member of their enum
    if word not in REPLACEMENTS:
        return ""
    return f" (cut_cross_entropy's name: pass config={REPLACEMENTS[word]} instead)"


@dataclass(frozen=True)
class LossConfig:
    """How the loss is computed; what it means does not depend on it.

    Attributes:
        implementation: "auto" takes the Triton kernels for CUDA tensors that they serve, where
            Triton is installed, and the blocked implementation for all others. "reference" holds
            the full logits. A name that cannot serve the call raises, it never falls back.
        preset: "default" lets the Triton backward leave out what is below `filter_eps`; "exact"
            leaves out nothing. Reference and blocked are exact under either.
        filter_eps: The probability below which the Triton backward may approximate; None is exact;
            "auto" is the preset's own: 2**-12 for "default", unless the problem is too small to
            gain by it (`kernels/loss.py`), None for "exact".
        deterministic: The same bits on each run. Reference and blocked always are; the Triton
            implementation is then exact, whatever `preset` says.
        scratch_bytes: Bound on the blocked implementation's tile of logits; None is 4 MiB on CPU
            (a tile stays in the cache), 64 MiB on other devices.
    """

    implementation: ImplementationName = "auto"
    preset: Preset = "default"
    filter_eps: FilterEps = "auto"
    deterministic: bool = False
    scratch_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, words in (("implementation", ImplementationName), ("preset", Preset)):
            value = getattr(self, name)
            if value not in get_args(words):
                raise choice_error(name, value, get_args(words))
        check_filter_eps(self.filter_eps)
        if self.preset == "exact" and self.filter_eps not in ("auto", None):
            raise ValueError(
                f"preset='exact' filters nothing, but filter_eps is {self.filter_eps}: "
                "pass preset='default' with it, or no filter_eps"
            )
        check_kind("deterministic", self.deterministic, bool, "True or False")
        if self.scratch_bytes is not None:  # under torch.compile perhaps a symbol, which is no int
            check_kind("scratch_bytes", self.scratch_bytes, SupportsIndex, "an int or None")
        if self.scratch_bytes is not None and self.scratch_bytes < 1:
            raise ValueError(f"scratch_bytes must be positive or None; got {self.scratch_bytes}")

    @property
    def eps(self) -> float | None:
        """The filter's threshold, "auto" resolved; None for an exact backward."""
        if self.filter_eps == "auto":
            return DEFAULT_FILTER_EPS if self.preset == "default" else None
        return self.filter_eps


def check_filter_eps(value: FilterEps) -> None:
    """Raise ValueError unless `value` is a threshold."""
    if value is None or value == "auto":
        return
    if not isinstance(value, Real) or not 0 <= value < 1:
        theirs = " (cut_cross_entropy's name: pass 'auto' instead)" if str(value) == "high" else ""
        raise ValueError(f"filter_eps must be 'auto', None or in [0, 1); got {value!r}{theirs}")
