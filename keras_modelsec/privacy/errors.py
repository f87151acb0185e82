"""The errors of the privacy domain that callers may want to catch."""


class NotPrivateError(ValueError):
    """Training would have gone on without the privacy it was asked for."""


class UnsupportedModelError(NotPrivateError):
    """The model holds something that breaks the bound on one example's influence."""


class PrivacyBudgetExceeded(RuntimeError):  # noqa: N818  (a public name, fixed by the design)
    """The next step would spend more privacy than the budget allows."""
