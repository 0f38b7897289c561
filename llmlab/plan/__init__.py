"""What will happen on the pod, known on the laptop: memory, messages, time and cost of an experiment."""

from llmlab.plan.report import Plan, plan
from llmlab.plan.topology import Topology, topology

__all__ = ["Plan", "Topology", "plan", "topology"]
