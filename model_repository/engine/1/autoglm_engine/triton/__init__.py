"""What the models of Triton's repository are made of: their adapters load nothing else."""
