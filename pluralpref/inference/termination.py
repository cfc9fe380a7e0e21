"""A request to stop, as schedulers send it before they take a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback

#: What a shell reports of a process that SIGTERM ended.
EXIT_CODE = 128 + signal.SIGTERM


class Termination(TrainerCallback):
    """Ends training with a checkpoint after the step, or the evaluation, in which SIGTERM arrives.

    A second SIGTERM ends the process at once. As a context it takes the signal, in the main thread; as a callback it asks the
    trainer to save and stop.
    """

    def __init__(self) -> None:
        self.received = False
        self._saved = False
        self._before: Any = None
        self._armed = False

    def __enter__(self) -> Termination:
        self.received = self._saved = False
        self._armed = threading.current_thread() is threading.main_thread()
        if self._armed:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._armed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save before anything else is done."""
        if args.world_size > 1:
            # All processes save the same step, whichever the signal reached.
            from accelerate.utils import gather_object

            self.received = any(gather_object([self.received]))
        if self.received:
            control.should_save, control.should_training_stop = True, True
            control.should_evaluate = False
            self._saved = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing more after that: transformers ends the epoch that was broken off as it ends any other."""
        if self._saved:
            control.should_save = control.should_evaluate = False
