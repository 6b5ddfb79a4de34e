"""Progress bars of a running federation: rounds, and the replies of the current round."""

from collections.abc import Iterable

from rich.markup import escape

from fl_sim.cli.terminal import errors, progress_bars
from fl_sim.events import Event, EventKind


def show_federation(events: Iterable[Event], *, num_rounds: int, quiet: bool) -> None:
    """Consume the events of a federation and show them.

    Args:
        events: What `fl_sim.runtime.run_federation` yields; its errors pass through.
        num_rounds: Rounds to come.
        quiet: Show nothing.
    """
    with progress_bars(quiet=quiet) as bars:
        rounds = bars.add_task("federation rounds", total=num_rounds, note="starting the engine")
        replies = bars.add_task("client replies", total=None, note="")
        for event in events:
            match event.kind:
                case EventKind.ROUND_STARTED:
                    bars.reset(replies, total=event.total)
                    bars.update(rounds, note=f"round {event.server_round}")
                case EventKind.REPLY_RECEIVED:
                    bars.advance(replies)
                case EventKind.ROUND_RECORDED:
                    bars.update(rounds, completed=event.server_round)
                    if event.failures:
                        errors.print(f"[yellow]round {event.server_round}: {event.failures} replies failed[/]")
                case EventKind.WARNING | EventKind.REPLY_FAILED:
                    message = escape(event.message or "")  # a client may put anything into its reason
                    errors.print(f"[yellow]round {event.server_round}:[/] {message}", highlight=False)
                case EventKind.FEDERATION_RESUMED:
                    bars.update(rounds, completed=event.server_round)
                    errors.print(f"[yellow]resumed:[/] {escape(event.message or '')}", highlight=False)
                case EventKind.EVALUATED:
                    bars.update(rounds, note=_describe(event))
                case EventKind.FEDERATION_STARTED | EventKind.FEDERATION_FINISHED:
                    bars.update(replies, note="")


def _describe(event: Event) -> str:
    loss = "diverged" if event.loss is None else f"{event.loss:.3f}"
    return f"accuracy {event.accuracy or 0:.1%}, loss {loss}"
