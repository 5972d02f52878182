"""Table of GPUs: memory, compute capability and published rates, for `mllm plan --gpu`.

Memory is in GB of 2^30 bytes: that of the data sheet, or less if drivers report less (T4, H200). Rates are dense matrix
products with fp32 accumulation, in 10^12 operations a second, as NVIDIA publishes them for the boost clock; cards of
the GeForce series without a published tensor rate in fp16 have that of their architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mllm.config.hardware import Hardware
from mllm.errors import ConfigError, hint

GIB = 2**30
CONTEXT = 0.45e9
"""Bytes of a GPU that PyTorch cannot allocate: the context of CUDA and the workspaces of its libraries. An assumption;
they are between 0.3 and 0.6 GB with most drivers."""
FRAGMENTATION = 0.03
"""Share of the rest that stays free for the gaps between blocks of the allocator. An assumption."""
UTILIZATION = 0.35
"""Assumed share of the published rate that a training reaches, for times without `--measured`."""


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    memory: float
    """GB of 2^30 bytes."""
    capability: tuple[int, int]
    """CUDA compute capability."""
    half: float
    """10^12 operations a second in bf16, or fp16 where the card has no bf16."""
    single: float
    """10^12 operations a second in fp32; tf32 where the card has it."""
    source: str

    @property
    def usable(self) -> int:
        """Return the bytes that tensors can occupy."""
        return usable_memory(self.memory * GIB)

    def hardware(self, count: int = 1) -> Hardware:
        """Return the hardware with this card for the rules of a config. Host memory and cores are not considered."""
        return Hardware("cuda", self.name, self.capability, int(self.memory * GIB), count, 64 * GIB, 8)


SHEET = "NVIDIA data sheet"
CARDS = (
    Card("GTX1650", 4, (7, 5), 6.0, 3.0, "NVIDIA Turing whitepaper; no tensor cores"),
    Card("RTX2060", 6, (7, 5), 25.8, 6.5, "NVIDIA Turing whitepaper, fp16 with fp32 accumulation"),
    Card("RTX2080Ti", 11, (7, 5), 53.8, 13.4, "NVIDIA Turing whitepaper, fp16 with fp32 accumulation"),
    Card("T4", 15, (7, 5), 65.0, 8.1, f"{SHEET}; 15 of 16 GB are usable with ECC"),
    Card("V100-16", 16, (7, 0), 125.0, 15.7, SHEET),
    Card("V100-32", 32, (7, 0), 125.0, 15.7, SHEET),
    Card("RTX3090", 24, (8, 6), 71.0, 35.6, "NVIDIA Ampere GA102 whitepaper"),
    Card("A4000", 16, (8, 6), 76.7, 38.3, "NVIDIA Ampere GA102 whitepaper"),
    Card("A6000", 48, (8, 6), 154.8, 77.4, "NVIDIA Ampere GA102 whitepaper"),
    Card("A10", 24, (8, 6), 125.0, 62.5, SHEET),
    Card("A10G", 24, (8, 6), 70.0, 35.0, SHEET),
    Card("A100-40", 40, (8, 0), 312.0, 156.0, SHEET),
    Card("A100-80", 80, (8, 0), 312.0, 156.0, SHEET),
    Card("RTX4080", 16, (8, 9), 97.5, 48.7, "NVIDIA Ada whitepaper"),
    Card("RTX4090", 24, (8, 9), 165.2, 82.6, "NVIDIA Ada whitepaper"),
    Card("L4", 24, (8, 9), 121.0, 60.0, SHEET),
    Card("L40S", 48, (8, 9), 362.0, 183.0, SHEET),
    Card("H100", 80, (9, 0), 989.0, 494.0, f"{SHEET}, SXM"),
    Card("H200", 139, (9, 0), 989.0, 494.0, f"{SHEET}, SXM"),
    Card("RTX5090", 32, (12, 0), 209.5, 104.8, "NVIDIA Blackwell whitepaper"),
    Card("B200", 180, (10, 0), 2250.0, 1100.0, SHEET),
)
ALIASES = {"A100": "A100-40", "V100": "V100-16", "RTXA6000": "A6000", "RTXA4000": "A4000", "H100-80": "H100"}


def usable_memory(total: float) -> int:
    """Return the bytes that tensors can occupy on a GPU with `total` bytes."""
    return max(0, int((total - CONTEXT) * (1 - FRAGMENTATION)))


def find_card(name: str) -> Card:
    """Return the card with a name, such as 'T4', 'rtx 3090' or, as drivers report it, 'NVIDIA A100-SXM4-40GB'.

    Raises:
        ConfigError: The table has no such card. The H100 for PCIe, which is slower than its row, has none.
    """
    plain = re.sub(r"[\s_]", "", name.lower())
    plain = re.sub(r"nvidia|geforce|tesla|quadro|(?<!h100)-?pcie|-?sxm\d?|hbm\d\w?", "", plain).removesuffix("gb")
    cards = {card.name.lower(): card for card in CARDS}
    cards |= {alias.lower(): cards[own.lower()] for alias, own in ALIASES.items()}
    by_letters = {key.replace("-", ""): card for key, card in cards.items()}
    if plain.replace("-", "") in by_letters:
        return by_letters[plain.replace("-", "")]
    names = [card.name for card in CARDS]
    raise ConfigError(f"unknown GPU '{name}'{hint(name, names)} (--memory 16GB plans for any other)")


def card_of_memory(total: int) -> Card:
    """Return a card of `total` bytes with all features, for `--memory`. Its rates are unknown (0)."""
    return Card(f"a GPU of {total / GIB:.3g} GB", total / GIB, (12, 0), 0.0, 0.0, "")


def smallest_card(need: int, capability: tuple[int, int]) -> Card | None:
    """Return the card with least memory in which `need` bytes of tensors fit, at least of a compute capability."""
    fitting = [card for card in CARDS if card.usable >= need and card.capability >= capability]
    return min(fitting, key=lambda card: card.memory, default=None)
