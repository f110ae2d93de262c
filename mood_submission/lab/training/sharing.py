"""How a run of several trainings shares its time: by what each has paid so far, and by whether it still gains."""

from collections.abc import Mapping, Sequence

# Validation is flat where the last FLAT_LAST validations have given less than FLAT_SHARE of all that was gained.
FLAT_LAST, FLAT_SHARE = 4, 0.02
# The least share of its planned time that a stage has, whatever the others have paid.
LEAST_SHARE = 0.25
# What the other steps before the last training may take, as a share of all planned minutes. More is taken off the trainings.
OTHERS_SHARE = 0.05


def is_flat(history: Sequence[float]) -> bool:
    """Whether the latest validations have hardly given anything.

    history: how good the network was at each validation so far; higher is better. What was gained is how far the best one lies
        above the first. So a measure that jumps up and down is not taken for one that gains.
    """
    if len(history) <= FLAT_LAST:
        return False
    best, best_before = max(history), max(history[:-FLAT_LAST])
    gained = best - history[0]
    return best - best_before <= FLAT_SHARE * gained


def minutes_for(stage: str, planned: Mapping[str, float], paid: Mapping[str, float], beside: float = 0.0) -> float:
    """The minutes that a stage may train. What the others before it have saved or overrun is shared by those that are left.

    stage: one of `planned`.
    planned: minutes of each stage that trains, in the order of training.
    paid: minutes that stages have trained. Only those before `stage` count, so that it has the same time after a kill.
    beside: minutes that other steps have taken beyond what was meant for them.
    """
    order = list(planned)
    place = order.index(stage)
    left = sum(planned.values()) - sum(paid.get(name, planned[name]) for name in order[:place]) - beside
    share = planned[stage] / sum(planned[name] for name in order[place:])
    return round(max(left * share, LEAST_SHARE * planned[stage]), 2)


def minutes_beside(others: Sequence[float], planned: Mapping[str, float]) -> float:
    """The minutes that the other steps have taken beyond what was meant for them. others: each one's. planned: as above."""
    return max(0.0, sum(others) - OTHERS_SHARE * sum(planned.values()))
