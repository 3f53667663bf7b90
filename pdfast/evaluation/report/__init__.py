"""The report of a run or a model: tables, plots and the HTML page."""
