"""Answers that no reward could judge: left out, or the end, as --reward-errors says; no run is lost by them."""

from minillm.errors import UserError
from minillm.rewards import RewardError
from minillm.run import Run
from minillm.session import Session

MOST_SKIPPED = 10  # times in a row


def leave_out(session: Session, error: RewardError) -> None:
    """Under --reward-errors skip what could not be judged teaches nothing, and is counted. Otherwise, or after too many
    in a row, RewardError, the run being saved as it was before it was tried."""
    in_a_row = skipped_last(session)
    if session.budget.reward_errors == "stop" or in_a_row >= MOST_SKIPPED:
        session.save()
        raise RewardError(f"{error} ({in_a_row} before it were left out)" if in_a_row else str(error))
    session.write(skipped=str(error))
    tell(session, "answers could not be judged, and are left out", error)


def skip(session: Session, error: RewardError) -> None:
    """The same of all answers of a step, which ends with that."""
    leave_out(session, error)
    session.progress.step += 1
    session.progress.seconds = session.seconds()


def leave_out_look(session: Session, error: RewardError) -> None:
    """The same of answers that are only looked at: RewardError, but under --reward-errors skip."""
    if session.budget.reward_errors == "stop":
        raise error
    tell(session, "a look goes without rewards", error)


def require_learned(session: Session) -> None:
    """UserError where the reward failed in every step: such a run is no success."""
    log = session.run.read_log()
    if (failed := [record["skipped"] for record in log if "skipped" in record]) and not any(
        "lr" in each for each in log
    ):
        raise UserError(
            f"nothing was learned, as the reward failed in every step, at last so: {failed[-1]}; mend it, try it with "
            "python -m minillm reward, and start a new run"
        )


def tell(session: Session, what: str, error: RewardError) -> None:
    session.console.print(f"step {session.progress.step}: {what}: {error}", markup=False, highlight=False)


def skipped_last(session: Session) -> int:
    """How many records at the end of the log are of what was left out."""
    records = session.run.read_log(session.progress.records)
    return next((n for n, record in enumerate(reversed(records)) if "skipped" not in record), len(records))


def skipped(run: Run) -> int:
    """How often something was left out."""
    return sum("skipped" in record for record in run.read_log())
