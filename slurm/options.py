"""What `sbatch` is told about one job: submission and `sbatch --test-only` ask for the very same."""

from slurm.cluster import Partition, Profile
from slurm.resources import Resources


def sbatch_options(resources: Resources, profile: Profile) -> dict[str, str | bool]:
    """Options of sbatch by long name, True for those without a value.

    What is said last wins: the profile, its partition, the partition's `options`, the resources' `extra`. Values are
    as they stand, so they go into an argument list, or are quoted for a shell.

    Args:
        resources: what every task of an array, or the one job, asks for.
        profile: account, QOS, nodes to leave out, and how each partition is asked for accelerators.
    """
    partition = profile.partitions.get(resources.partition or "")
    exclude = sorted({*profile.exclude, *resources.exclude})
    given = {
        "partition": resources.partition,
        "account": (partition and partition.account) or profile.account,
        "qos": (partition and partition.qos) or profile.qos,
        "exclude": ",".join(exclude) or None,
    }
    options: dict[str, str | bool] = {name: value for name, value in given.items() if value}
    options |= {
        "nodes": str(resources.num_nodes),
        "ntasks-per-node": str(resources.tasks_per_node),
        "cpus-per-task": str(max(1, resources.num_cpus // resources.tasks_per_node)),
        "mem": f"{memory_mb(resources.mem_gb)}M",
        "time": str(resources.time_min),
    }
    options |= _accelerators(resources, partition)
    options |= partition.options if partition else {}
    return options | {name: value or True for name, value in resources.extra}


def memory_mb(gb: float) -> int:
    """What `--mem` says for so many GiB, in Slurm's megabytes, which are MiB; at least one, since 0 means all of it."""
    return max(1, round(gb * 1024))


def _accelerators(resources: Resources, partition: Partition | None) -> dict[str, str | bool]:
    request = partition.request if partition else "gres"
    if not resources.accelerators or resources.accelerator is None or request == "partition":
        return {}
    if request == "gres":
        return {"gres": f"{resources.accelerator}:{resources.accelerators}"}
    # --gpus-per-node takes the type alone; that it is a GPU goes without saying.
    type_of_gpu = resources.accelerator.partition(":")[2]
    return {"gpus-per-node": f"{type_of_gpu}:{resources.accelerators}" if type_of_gpu else str(resources.accelerators)}
