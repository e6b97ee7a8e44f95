"""Results of many finished trainings: fronts, comparison tables, figures, and the published results of the paper."""
