"""What many finished trainings amount to: fronts, comparison tables, figures, and the published results of the paper."""
