"""What a cluster allows, what a profile asks of it that it does not have, and what a refusal means."""

from slurm.limits.check import Problem, check_profile, refuse, whole_node
from slurm.limits.discover import discover
from slurm.limits.known import Accounts, Association, Limits, NodeGroup, PartitionLimits, Qos
from slurm.limits.refusals import Refusal, classify_refusal, sbatch_test_only

__all__ = [
    "Accounts",
    "Association",
    "Limits",
    "NodeGroup",
    "PartitionLimits",
    "Problem",
    "Qos",
    "Refusal",
    "check_profile",
    "classify_refusal",
    "discover",
    "refuse",
    "sbatch_test_only",
    "whole_node",
]
