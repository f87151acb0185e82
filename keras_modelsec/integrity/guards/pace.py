"""How much time and how many bytes a guard may and must spend in a step."""


class Pace:
    """Gives a share of the running time away in small pieces, and remembers what is owed.

    Where both leaves are compared and gaps are watched, each gets half of the share.

    Args:
        overhead: The share of running time that may be spent, >= 0.
        every_steps: All bytes must be looked at within that many steps, or None.
        every_seconds: The same in seconds, or None.
    """

    def __init__(self, overhead: float, every_steps: int | None, every_seconds: float | None):
        self._overhead = overhead
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._credit = 0.0
        self._gap_credit = 0.0
        self._owed = 0.0
        self._mark: float | None = None
        self._elapsed = 0.0

    def pause(self) -> None:
        """Time that passes until the next `end_step` is nobody's."""
        self._mark = None

    def begin_step(self, now: float) -> None:
        """A step has ended at `now`, in seconds, and the guard's own work begins."""
        self._elapsed = 0.0 if self._mark is None else now - self._mark

    def for_leaves(
        self, steps: int, total: int, least: float, *, shared: bool
    ) -> tuple[float, float]:
        """What may be spent on leaves after this step.

        Args:
            steps: How many steps were run since the last call.
            total: How many bytes there are in all.
            least: What one leaf costs, in seconds.
            shared: Whether gaps are watched too.

        Returns:
            Seconds that may be spent, and bytes that must be looked at even if it takes longer. No
            step is given more than twice its own share, or one leaf.
        """
        share = self._share(shared)
        self._credit = min(self._credit + share, max(10 * share, 4 * least))
        if self._every_steps:
            self._owed += total * steps / self._every_steps
        if self._every_seconds:
            self._owed += total * self._elapsed / self._every_seconds
        self._owed = min(self._owed, total)
        return min(self._credit, max(2 * share, least)), self._owed

    def allows_gap(self, seconds: float, *, shared: bool) -> bool:
        """Whether enough was saved up to watch the gap that begins, which costs `seconds`."""
        self._gap_credit = min(self._gap_credit + self._share(shared), 2 * seconds)
        return self._gap_credit >= seconds

    def spent_on_leaves(self, seconds: float, nbytes: int) -> None:
        """Books what was done."""
        self._credit -= seconds
        self._owed = max(0.0, self._owed - nbytes)

    def spent_on_gap(self, seconds: float) -> None:
        """Books what was done."""
        self._gap_credit -= seconds

    def end_step(self, now: float) -> None:
        """The time of the next step begins to count."""
        self._mark = now

    def _share(self, shared: bool) -> float:
        return self._overhead * self._elapsed * (0.5 if shared else 1.0)
