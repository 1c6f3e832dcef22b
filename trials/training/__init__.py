"""What every engine trains by: the plan of steps and ticks, batches, schedules, optimizers."""
