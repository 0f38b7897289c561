"""Studies: arms that differ by a named delta, matched, trained with paired seeds, and compared."""

from llmlab.study.matching import Every, Knob, Leaf
from llmlab.study.study import Arm, Study, Tune, factorial, ladder, leave_one_out, one_at_a_time

__all__ = ["Arm", "Every", "Knob", "Leaf", "Study", "Tune", "factorial", "ladder", "leave_one_out", "one_at_a_time"]
