"""The errors a user may meet, one class an exit code.

``UserError`` is the user's to mend (exit 2), ``BudgetError`` means that nothing fits the
budget (exit 3). Both carry one line that names what was wrong, where, and what to do.
Anything else that reaches the command line is a bug (exit 1).
"""

from __future__ import annotations


class HwnasError(Exception):
    """An expected failure with a one-line message and an exit code."""

    exit_code = 1


class UserError(HwnasError):
    """Bad input: a file, an option or data that the user can correct."""

    exit_code = 2


class BudgetError(HwnasError):
    """The latency budget cannot be met; the message names the fastest that was possible."""

    exit_code = 3
