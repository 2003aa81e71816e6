"""The exceptions of the tuner.

ValueError                   the user's mistake: bad file, bad value, unknown key. One line, exit code 2.
ServingError                 the engine under test failed; ends the trial, never the study
├── LaunchError              the process did not become healthy
├── EngineCrashed            the process died
├── EngineOutOfMemory        the process died, or refused the configuration, for want of memory
├── EngineHung               no progress before the deadline
├── SpeculationLossy         speculation changes greedy answers
├── Doubtful                 it was measured, but not it: see docs/metrics.md, doubts
├── ConfigRejected           the engine says that this configuration cannot run
└── DoesNotFit               arithmetic says that it takes more memory than there is: no engine was asked
"""

from __future__ import annotations


class ServingError(Exception):
    """The engine under test failed. `reason` is the typed reason stored with the trial."""

    reason = "serving_error"


class LaunchError(ServingError):
    """The process did not become healthy before the deadline."""

    reason = "launch_failed"


class EngineCrashed(ServingError):
    """The process died."""

    reason = "engine_crashed"


class EngineOutOfMemory(ServingError):
    """The process died, or refused the configuration, for want of memory."""

    reason = "out_of_memory"


class EngineHung(ServingError):
    """No progress before the deadline."""

    reason = "engine_hung"


class SpeculationLossy(ServingError):
    """Speculation changes greedy answers."""

    reason = "speculation_lossy"


class Doubtful(ServingError):
    """A replay whose figures are not the configuration's, even when repeated."""

    reason = "doubtful"


class ConfigRejected(ServingError):
    """The engine says that this configuration cannot run."""

    reason = "config_rejected"


class DoesNotFit(ServingError):
    """Weights and pages take more memory than the machine has."""

    reason = "does_not_fit"
