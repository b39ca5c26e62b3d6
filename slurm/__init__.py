"""What carries work to the nodes: resources, cluster profiles, submission, job states."""
