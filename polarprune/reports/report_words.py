"""What a report says in sentences."""

from collections.abc import Iterator

from polarprune.figure_words import WORDS, sentence
from polarprune.reports.report_facts import ReportFacts
from polarprune.runs.run_lines import CutLine


def percent(share: float | None, digits: int = 2) -> str:
    """A share 0..1 in percent; a dash for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def counted(count: int | None) -> str:
    """A whole number; a dash for None."""
    return "-" if count is None else f"{count:,}"


def before_and_after(cut: CutLine, headline: str) -> tuple[float | None, float | None]:
    """What the test split gave before and after a cut, 0..1."""
    return getattr(cut, f"{headline}_before"), getattr(cut, f"{headline}_after")


def certificate_words(cut: CutLine, headline: str) -> Iterator[str]:
    """What the check of one cut shows, and what it does not."""
    made = cut.certificate
    if made is None:
        yield "No certificate of this cut is in the file."
    else:
        what = "real images" if made.inputs == "real" else "random inputs"
        yield (
            f"In float64, on {made.n:,} {what}, in evaluation and in training mode, the network "
            "with its closed parts cut out computed what it computed before with the same "
            f"decisions: largest relative error {made.max_rel_error:.1e} "
            f"({made.max_abs_error:.1e} absolute), {made.tolerance:.0e} allowed. "
            + ("It holds." if made.passed else "It does NOT hold.")
        )
        if made.top1_agreement is not None:
            yield f"Both gave the same class for {percent(made.top1_agreement)}."
        if made.inputs != "real":
            yield "No real image was among them."
    before, after = before_and_after(cut, headline)
    if cut.agreement is not None and cut.agreement < 1:
        yield (
            f"Not covered by it: {percent(1 - cut.agreement)} of the gates' decisions on held-out "
            "images were not yet as they were frozen."
        )
    if before is not None and after is not None:
        yield (
            f"{sentence(WORDS[headline])} on the test split: {percent(before)} with the gates "
            f"deciding, {percent(after)} after the cut."
        )
    if cut.output_agreement is not None:
        share = percent(cut.output_agreement)
        yield f"Held-out outputs of the same class before and after: {share}."


def bound_words(facts: ReportFacts) -> str:
    """What the run was asked for."""
    config = facts.head.config
    if facts.is_dense:
        return "trained dense, nothing is cut"
    for key, name in (
        ("target", "MACs"),
        ("target_params", "parameters"),
        ("target_latency", "predicted latency"),
    ):
        if isinstance(config.get(key), int | float):
            return f"at most {100 * config[key]:g} % of the {name}"
    return f"no bound; the method {config.get('method')} sets the cost itself"


def state_words(facts: ReportFacts) -> str:
    """How far an unfinished run has come."""
    done, planned = len(facts.epochs), facts.head.config.get("epochs")
    if not facts.has_checkpoint:
        return "This run is not finished, and it has no checkpoint: --resume begins it anew."
    return (
        f"This run is not finished ({done} of {planned} epochs); go on with: polarprune train ... "
        "--resume"
    )
