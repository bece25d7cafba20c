"""Which layers are mixed, and how strongly."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mixout_export.errors import ArgumentError, TargetError

Granularity = Literal["neuron", "filter", "element"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)

#: Words that select layers of the model's body by their kind: every `nn.Linear` and transformers'
#: `Conv1D`, and every `nn.Conv1d` and `nn.Conv2d`.
ALL_LINEAR, ALL_CONV = "all-linear", "all-conv"

_SUFFIX_LIST = re.compile(r"[A-Za-z0-9_.,\-]+")


def check_probability(p: float) -> float:
    """Validate a mix probability and return it as a float.

    Raises:
        ArgumentError: `p` is not a number in [0, 1). At p = 1 the mixed weight has no expectation.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0.0 <= p < 1.0:
        raise ArgumentError(
            f"p: got {p!r}, expected a number in [0, 1), because at p = 1 the scale 1/(1 - p) "
            "is infinite and the mixed weight has no expectation"
        )
    return float(p)


def check_granularity(granularity: str) -> Granularity:
    """Validate and return `granularity`.

    Raises:
        ArgumentError: It is not one of `GRANULARITIES`.
    """
    if granularity not in GRANULARITIES:
        raise ArgumentError(
            f"granularity: got {granularity!r}, expected one of {', '.join(GRANULARITIES)}"
        )
    return granularity  # type: ignore[return-value]


@dataclass(frozen=True)
class TargetPattern:
    """A parsed target pattern: a list of module-name suffixes, or one regular expression.

    Attributes:
        text: The pattern as the user wrote it.
        suffixes: The suffixes, empty if the pattern is a regular expression.
        regex: The compiled expression, None if the pattern is a list of suffixes.
        words: Those of the list that are not suffixes, but select layers by their kind.
    """

    text: str
    suffixes: tuple[str, ...]
    regex: re.Pattern[str] | None
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, option: str, words: Sequence[str] = ()) -> "TargetPattern":
        """Parse a pattern.

        A string of only letters, digits, `_ . , -` is a comma-separated list of suffixes; anything
        else is a regular expression that must match a module's whole name.

        Args:
            text: The pattern.
            option: Name of the option that the pattern came from, for error messages.
            words: Words that may stand in the list and are not suffixes.

        Raises:
            TargetError: The pattern is empty or does not compile.
        """
        if _SUFFIX_LIST.fullmatch(text):
            parts = [part for part in text.split(",") if part]
            if parts:
                suffixes = tuple(part for part in parts if part not in words)
                return cls(text, suffixes, None, tuple(part for part in parts if part in words))
        if not text.strip(" ,"):
            default = f" or {ALL_LINEAR}" if option == "target_modules" else ""
            raise TargetError(f"{option}: {text!r} is empty; name modules{default}")
        try:
            return cls(text, (), re.compile(text))
        except re.error as error:
            raise TargetError(
                f"{option}: {text!r} is not a valid regular expression ({error}); "
                "write a comma-separated list of name suffixes, or correct the expression"
            ) from error

    def parts(self) -> tuple[str, ...]:
        """Return the suffixes or the expression; each of them must match a module."""
        return self.suffixes if self.regex is None else (self.text,)

    def part_matches(self, part: str, name: str) -> bool:
        """Tell whether one of `parts()` matches a module's name."""
        if self.regex is not None:
            return self.regex.fullmatch(name) is not None
        return name == part or name.endswith("." + part)

    def matches(self, name: str) -> bool:
        """Tell whether any part matches a module's name."""
        return any(self.part_matches(part, name) for part in self.parts())

    def names_exactly(self, name: str) -> bool:
        """Tell whether the pattern spells out this one module's full name."""
        if self.regex is None:
            return name in self.suffixes
        return re.sub(r"\\(.)", r"\1", self.text) == name


def _as_pattern_text(option: str, value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise TargetError(f"{option}: got {value!r}, expected a string or a sequence of strings")
    return ",".join(value)


@dataclass(frozen=True)
class MixoutConfig:
    """Which layers of a model get mixout, and how strongly they are mixed.

    Attributes:
        p: Mix probability in [0, 1): the probability that a training step replaces an input
            neuron's weights by the pretrained ones.
        granularity: "neuron" draws one mask bit per input neuron or input channel, as in the paper.
            "filter" draws one per output neuron or output channel, "element" one per weight.
        target_modules: A comma-separated list (or sequence) of name suffixes, or a regular
            expression matched against whole names. In a list, "all-linear" stands for every linear
            layer of the model's body, and "all-conv" for every convolution.
        exclude_modules: Modules that are not mixed, in the same notation; None excludes nothing.

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
        TargetError: A pattern is empty or is not a valid regular expression.
    """

    p: float = 0.7
    granularity: Granularity = "neuron"
    target_modules: str = ALL_LINEAR
    exclude_modules: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", check_probability(self.p))
        check_granularity(self.granularity)
        targets = _as_pattern_text("target_modules", self.target_modules)
        object.__setattr__(self, "target_modules", targets)
        if self.exclude_modules is not None:
            excluded = _as_pattern_text("exclude_modules", self.exclude_modules)
            object.__setattr__(self, "exclude_modules", excluded)
        self.targets()
        self.exclusions()

    def targets(self) -> TargetPattern:
        """Return the parsed `target_modules`."""
        return TargetPattern.parse(
            self.target_modules, option="target_modules", words=(ALL_LINEAR, ALL_CONV)
        )

    def exclusions(self) -> TargetPattern | None:
        """Return the parsed `exclude_modules`; None if nothing is excluded."""
        if self.exclude_modules is None:
            return None
        return TargetPattern.parse(self.exclude_modules, option="exclude_modules")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can store."""
        return {
            "p": self.p,
            "granularity": self.granularity,
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
        }
