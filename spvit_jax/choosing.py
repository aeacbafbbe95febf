"""What a model is pruned to: by scores, by a search, and by trying it against simpler shapes."""

import dataclasses

from spvit_jax import hosts
from spvit_jax.calibrated import calibrate, score
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.merges import Schedules
from spvit_jax.models import Classifier
from spvit_jax.report import Held
from spvit_jax.shortlist import shortlist
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.candidates import candidates
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.prior import scored_logits
from spvit_jax.single_path.score import Scores
from spvit_jax.single_path.supernet import supernet
from spvit_jax.trained import fit


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a model is pruned to, and how that was found."""

    architecture: Architecture
    by: str  # see ``Result``
    candidates: tuple[str, ...] = ()  # operations it was chosen from
    budgets: tuple[Held, ...] = ()


def choose(context: Context, dense: Classifier) -> tuple[Decision, Classifier]:
    """Decides by a search or by scores alone, and tries that against simpler architectures.

    Returns:
      The decision, and the network whose weights a search has trained; the dense one without.
    """
    config, network, threshold = context.config, dense, None
    with hosts.together(*USER_ERRORS):
        gating = Gating.of(config.search, config.budget, context.spec, dense)
    hosts.agree_on("budget.latency", [budget.prices.blocks for budget in gating.budgets])
    proposals: dict[str, Architecture] = {}
    if "dims" in config.search.axes and any(held.narrowed is None for held in gating.budgets):
        context.console.say(
            "dims: heads keep all their features, for the table of budget.latency has no times of"
            " fewer; measure it with dims in search.axes: python -m spvit_jax.prices"
        )
    if config.scores:
        scores = score(context, dense, calibrate(context))
        proposals = candidates(gating.space, scores, gating.budgets, config.model.variant)
        merging = _merging(context, dense, scores) if config.merges else {}
        if merging:  # of what merges nothing, what is scored alone goes on
            proposals = merging | {"scored": proposals["scored"]}
        if config.search.epochs and config.search.start == "scores":
            start = scored_logits(gating.space, scores, gating.budgets)
            gating = dataclasses.replace(gating, start=start)
    if config.search.epochs:
        network, logits = search(context, dense, gating)
        threshold = gating.threshold(logits, config.model.variant)
        context.workdir.write("architecture_threshold.json", threshold.save)
        projects = config.search.decision == "project"
        decided = gating.project(logits, config.model.variant) if projects else threshold
        proposals = {config.search.decision: decided} | proposals
    by, architecture = shortlist(context, dense, proposals)
    held = _held(context, gating, architecture, threshold)
    parts = [architectures.describe(architecture, context.spec), *map(_cost, held)]
    context.console.stage("decide", "; ".join(parts))
    context.workdir.write("architecture.json", architecture.save)
    return Decision(architecture, by, gating.space.ops, held), network


def _merging(context: Context, dense: Classifier, scores: Scores) -> dict[str, Architecture]:
    """Candidates that merge tokens, by the best schedule; none where merging is no better."""
    config = context.config
    merges = Schedules(context, "merges", config.budget, dense, scores).choose()
    if not merges:
        return {}
    gating = Gating.of(config.search, config.budget, context.spec, dense, merges)
    proposals = candidates(gating.space, scores, gating.budgets, config.model.variant)
    return {f"{name}, merged": architecture for name, architecture in proposals.items()}


def search(context: Context, dense: Classifier, gating: Gating) -> tuple[Classifier, Gates]:
    """Trains weights and gates under the budgets; the supernet and its gate logits."""
    training = context.config.search
    budgets = ", ".join(f"{b.target:,.8g} {b.prices.unit}" for b in gating.budgets)
    context.announce("search", f"{training.epochs:g} epochs towards {budgets}")
    network = supernet(dense, gating.space.ops)
    return fit(context, "search", network, training, gating=gating)


def _cost(held: Held) -> str:
    plain = "" if held.threshold is None else f" (plain threshold: {held.threshold:,.8g})"
    return f"{held.found:,.8g} {held.unit}{plain}"


def _held(
    context: Context, gating: Gating, choice: Architecture, threshold: Architecture | None
) -> tuple[Held, ...]:
    """What architectures take of the budgets."""
    config, spec = context.config, context.spec
    cut = Gating.of(config.search, config.budget, spec, merges=choice.merges, dims=choice.dims)

    def price(budget: Budget, architecture: Architecture) -> float:
        return cost(budget.prices, architecture.gates(spec, gating.space.ops)).item()

    return tuple(
        Held(
            plain.prices.unit,
            plain.target,
            plain.prices.dense,
            price(narrowed, choice),
            None if threshold is None else price(plain, threshold),
        )
        for plain, narrowed in zip(gating.budgets, cut.budgets, strict=True)
    )
