"""What one trial does: load a frozen 4-bit base, train an adapter on it, report its loss."""
