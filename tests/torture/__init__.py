"""Faults that the integrity domain must survive, made on purpose and counted (`make torture`)."""
