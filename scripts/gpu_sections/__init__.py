"""What scripts/gpu_validation.py measures, a file each for related sections."""
