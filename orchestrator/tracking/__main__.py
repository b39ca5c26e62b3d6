"""Mirrors a cell at W&B while it trains: CELL_FOLDER PERIOD_S (`tracking.live`)."""

from orchestrator.tracking.live import main

if __name__ == "__main__":
    main()
