"""The login node: study file, plan, jobs, store, results, frontier, report. Never imports torch."""
