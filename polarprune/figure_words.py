"""What figures are called for a reader; nothing here needs torch."""

from collections.abc import Mapping

# Those of a task stand before what is said about gates and cuts.
WORDS = {
    "top1": "top-1",
    "miou": "mIoU",
    "dice": "Dice",
    "agreement": "agreement of the gates",
    "pixel_agreement": "agreement of the pixels",
    "dynamic_top1": "top-1 with the gates deciding",
    "dynamic_miou": "mIoU with the gates deciding",
    "dynamic_macs_ratio": "MACs with the gates deciding (gates included)",
    "forecast_macs_ratio": "MACs that the method foresaw",
}
_OF_TASKS = ("top1", "miou", "dice")


def by_name(figures: Mapping[str, float | None]) -> dict[str, str]:
    """The figures of a task by what they are called: {"top-1": "97.22 %"}."""
    return {
        WORDS[key]: f"{100 * value:.2f} %"
        for key in _OF_TASKS
        if (value := figures.get(key)) is not None
    }


def task_figures(figures: Mapping[str, float | None]) -> str:
    """How good a network is: "top-1 97.22 %", "mIoU 81.00 %, Dice 89.34 %"; empty without any."""
    return _listed(figures, [key for key in _OF_TASKS if figures.get(key) is not None])


def cut_figures(figures: Mapping[str, float | None]) -> str:
    """How well what was cut agrees with what was there: "agreement of the gates 99.76 %"."""
    others = [key for key in WORDS if key not in _OF_TASKS]
    return _listed(figures, [key for key in others if figures.get(key) is not None])


def _listed(figures: Mapping[str, float | None], keys: list[str]) -> str:
    return ", ".join(f"{WORDS[key]} {100 * (figures[key] or 0.0):.2f} %" for key in keys)


def sentence(text: str) -> str:
    """With a capital, unless it is a word that has one inside (mIoU)."""
    first = text.split(" ", 1)[0]
    return text if any(c.isupper() for c in first) else text[:1].upper() + text[1:]
