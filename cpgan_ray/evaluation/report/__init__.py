"""The report of an evaluation: `report.json`, the card, its figures and panels."""
