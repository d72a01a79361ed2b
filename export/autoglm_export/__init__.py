"""From a checkpoint to an artifact that the ensemble serves."""
