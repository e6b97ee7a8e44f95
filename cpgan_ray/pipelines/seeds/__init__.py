"""The job of `jobs/train_celeba.py --seeds`: trainings of one configuration under several seeds, and their means."""
